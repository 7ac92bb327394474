"""Checks across the sections of a recipe: can this plan be carried out at all?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hybridize.core.catalog import did_you_mean, known_names, read_dictionary
from hybridize.core.document import KeyPath
from hybridize.core.exports import TARGETS
from hybridize.core.gguf import QUANTS
from hybridize.core.loss_weights import LossWeight
from hybridize.core.machine import check_machine
from hybridize.core.sections import Evaluate, Stage, Training
from hybridize.core.sources import Blend, Documents, Source
from hybridize.core.suites import DIAGNOSIS, folder_name, more_suites, scoring_suite

if TYPE_CHECKING:
    from hybridize.core.recipe import Recipe

Problem = tuple[KeyPath, str]
RESERVED = (
    *("teacher", "importance", "align", "plan", "eval", "sft", "merge", "bench", "export"),
    *("quantize", "report"),
)


def check_recipe(recipe: Recipe) -> Iterator[Problem]:
    """List what cannot be carried out: the path of a value, and a sentence about it."""
    yield from _check_names(recipe)
    yield from _check_data(recipe)
    yield from _check_align(recipe)
    yield from _check_importance(recipe)
    yield from _check_stages(recipe)
    yield from _check_sft(recipe)
    yield from _check_merge(recipe)
    yield from _check_quantize(recipe)
    yield from _check_export(recipe)
    yield from check_machine(recipe)


def _check_names(recipe: Recipe) -> Iterator[Problem]:
    yield from _check_known(("mixer", "kind"), recipe.mixer.kind, "mixers", "attention")
    yield from _check_losses(("distill", "loss"), recipe.distill.loss)
    for i, stage in enumerate(recipe.stages):
        yield from _check_losses(("stages", i, "loss"), stage.loss)
    if recipe.evaluate:
        yield from _check_evaluate(recipe.evaluate)
        yield from _check_folders(recipe, recipe.evaluate)
    if recipe.merge:
        yield from _check_known(("merge", "method"), recipe.merge.method, "merges")


def _check_evaluate(section: Evaluate) -> Iterator[Problem]:
    for i, name in enumerate(section.suite):
        yield from _check_known(("evaluate", "suite", i), name, "suites")
        if name in section.suite[:i]:
            yield ("evaluate", "suite", i), f"{name} is listed twice. Remove one of them."
    others = tuple(more_suites(section))
    for name in section.limits:
        if name not in others:
            told = "the one that evaluate.problems is for" if name in section.suite else "not asked"
            yield (
                ("evaluate", "limits", name),
                f"evaluate.limits names {name}, which is {told}. "
                f"The others: {', '.join(others) or 'none'}.",
            )
    if section.samples > 1 and section.temperature == 0:
        yield (
            ("evaluate", "samples"),
            f"{section.samples} samples at temperature 0 are all the same. "
            "Set evaluate.temperature, such as 0.6.",
        )
    if section.top_p > 1:
        yield ("evaluate", "top_p"), f"top_p {section.top_p} is not a share: at most 1."


def _check_folders(recipe: Recipe, section: Evaluate) -> Iterator[Problem]:
    """Refuse stages whose scores would lie in the folder of a suite."""
    taken = [folder_name(name) for name in more_suites(section)] + [DIAGNOSIS] * section.diagnose
    for i, stage in enumerate(recipe.stages):
        if stage.name in taken:
            yield (
                ("stages", i, "name"),
                f"eval/{stage.name} holds what a suite finds. Choose another name for the stage.",
            )


def _check_losses(path: KeyPath, loss: dict[str, Any]) -> Iterator[Problem]:
    if not loss:
        yield path, "the loss is empty. Give at least one, e.g. {reverse_kl: 1.0}."
    places = read_dictionary("losses")
    for name, weight in loss.items():
        yield from _check_known((*path, name), name, "losses")
        layers = weight.layers if isinstance(weight, LossWeight) else None
        if layers is not None and name in places and ".states:" not in places[name]:
            yield (*path, name), f"{name} is not a loss between layers: remove its layers."


def _check_known(path: KeyPath, name: str, kind: str, but: str = "") -> Iterator[Problem]:
    """Check a name against a dictionary; `package.module:Name` is a plugin and always allowed."""
    known = tuple(entry for entry in known_names(kind) if entry != but)
    if ":" not in name and name not in known:
        hint = did_you_mean(name, known)
        yield (
            path,
            f"{name!r} is not one of the {kind}. {hint}Known: {', '.join(known)}; "
            "or package.module:Name of your own.",
        )


def _check_data(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    sources = {("data", "train"): data.train, ("data", "heldout"): data.heldout}
    if recipe.sft:
        sources["sft", "data"] = recipe.sft.data
    for path, source in sources.items():
        yield from _check_source(path, source)
    share = data.heldout_share
    if share is not None and data.heldout != data.train:
        yield (
            ("data", "heldout_share"),
            "data.heldout_share divides data.train, but data.heldout names text of its own. "
            "Remove one of them.",
        )
    elif share is not None and not 0 < share < 1:
        yield (
            ("data", "heldout_share"),
            f"data.heldout_share is {share}, which leaves nothing to train or to measure on. "
            "Write it like 2%.",
        )


def _check_source(path: KeyPath, source: Source | None) -> Iterator[Problem]:
    if isinstance(source, Blend):
        shares = source.shares
        if len(shares) != len(source.sources) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            yield (
                (*path, "shares"),
                f"{'.'.join(map(str, path))} blends {len(source.sources)} sources in the shares "
                f"{list(shares)}. Give one share above 0 a source; together they are 1.",
            )
        for i, part in enumerate(source.sources):
            if isinstance(part, Documents):
                yield from _check_keys((*path, "sources", i), part)
    elif isinstance(source, Documents):
        yield from _check_keys(path, source)


def _check_keys(path: KeyPath, source: Documents) -> Iterator[Problem]:
    forms = [form for form in ("text", "prompt", "completion", "messages") if getattr(source, form)]
    if forms not in ([], ["text"], ["prompt", "completion"], ["messages"]):
        yield (
            path,
            f"{'.'.join(map(str, path))} gives {' and '.join(forms)}. "
            "Give one form: text, or prompt and completion, or messages.",
        )


def _check_align(recipe: Recipe) -> Iterator[Problem]:
    section = recipe.align
    if section:
        per_step = section.tokens_per_step or recipe.data.sequence_length
        yield from _check_budget(("align",), "align", section.tokens, per_step, recipe)
    elif recipe.mixer.init == "aligned":
        yield (
            ("mixer", "init"),
            "mixer.init is aligned, but the recipe has no section align to train such mixers. "
            "Add align: {tokens: 100k}, or set mixer.init to from_attention.",
        )


def _check_importance(recipe: Recipe) -> Iterator[Problem]:
    methods: set[str] = set()
    for i, entry in enumerate(recipe.importance):
        if entry.method in methods:
            yield ("importance", i), f"{entry.method} is listed twice. Remove one of them."
        methods.add(entry.method)


def _check_stages(recipe: Recipe) -> Iterator[Problem]:
    counts = {"teacher": 0}
    methods: list[str] = [entry.method for entry in recipe.importance]
    for i, stage in enumerate(recipe.stages):
        here: KeyPath = ("stages", i)
        if stage.name in counts or stage.name in RESERVED:
            taken = "taken" if stage.name in counts and stage.name != "teacher" else "reserved"
            yield (*here, "name"), f"the stage name {stage.name} is {taken}. Choose another."
        if stage.start_from not in counts:
            earlier = ", ".join(counts)
            yield (
                (*here, "start_from"),
                f"stage {stage.name} starts from {stage.start_from!r}, which is no earlier stage. "
                f"Earlier: {earlier}.",
            )
        start = counts.get(str(stage.start_from), 0)
        if stage.converted <= start:
            yield (
                (*here, "converted"),
                f"stage {stage.name} converts {stage.converted} layers in all, but "
                f"{stage.start_from} has {start} already. Set converted to {start + 1} or more.",
            )
        yield from _check_rank(here, stage, methods)
        yield from _check_training(here, stage.name, stage, stage.tokens, recipe)
        counts[stage.name] = stage.converted


def _check_rank(here: KeyPath, stage: Stage, methods: list[str]) -> Iterator[Problem]:
    if stage.rank_by in methods:
        return
    if stage.rank_by:
        yield (
            (*here, "rank_by"),
            f"stage {stage.name} ranks by {stage.rank_by}, which importance does not list. "
            f"Add {{method: {stage.rank_by}}} to importance.",
        )
        return
    what = f"one of {', '.join(methods)}" if methods else "leave_one_out, and list it in importance"
    yield here, f"stage {stage.name} does not say how to choose layers. Set rank_by: {what}."


def _check_training(
    here: KeyPath, name: str, training: Training, tokens: int, recipe: Recipe
) -> Iterator[Problem]:
    yield from _check_budget(here, name, tokens, training.tokens_per_step, recipe)
    schedule = training.schedule
    if schedule.name == "wsd" and schedule.warmup + schedule.decay > 1:
        yield (
            (*here, "schedule"),
            f"{name} warms up and decays for more than 100% of its budget. Lower one of them.",
        )


def _check_budget(
    here: KeyPath, name: str, tokens: int, per_step: int, recipe: Recipe
) -> Iterator[Problem]:
    length = recipe.data.sequence_length
    if per_step > tokens:
        yield (
            (*here, "tokens"),
            f"{name} has a budget of {tokens} tokens, less than one step of {per_step}. "
            "Raise tokens or lower tokens_per_step.",
        )
    if per_step < length:
        yield (
            (*here, "tokens_per_step"),
            f"{name} takes {per_step} tokens a step, less than one row of {length} tokens. "
            "Raise tokens_per_step or lower data.sequence_length.",
        )


def _check_sft(recipe: Recipe) -> Iterator[Problem]:
    if recipe.sft is None:
        return
    names = [stage.name for stage in recipe.stages]
    if recipe.sft.start_from not in [*names, "teacher"]:
        yield (
            ("sft", "start_from"),
            f"sft starts from {recipe.sft.start_from!r}, which is no stage. "
            f"Stages: {', '.join(names)}.",
        )
    yield from _check_training(("sft",), "sft", recipe.sft, recipe.sft.tokens, recipe)


def _check_quantize(recipe: Recipe) -> Iterator[Problem]:
    quantize = recipe.quantize
    if quantize is None:
        return
    for i, name in enumerate(quantize.types):
        path = ("quantize", "types", i)
        if name not in QUANTS:
            hint = did_you_mean(name, QUANTS)
            yield path, f"{name!r} is not a type of weights. {hint}Known: {', '.join(QUANTS)}."
        if name in quantize.types[:i]:
            yield path, f"{name} is listed twice. Remove one of them."
    yield from _check_made(recipe, "quantize", quantize.model)
    held = TARGETS["gguf"].mixers
    if quantize.model != "teacher" and recipe.mixer.kind not in held:
        yield (
            ("quantize", "model"),
            f"quantize writes GGUF, which has {', '.join(held)} beside attention, but mixer.kind "
            f"is {recipe.mixer.kind}. Remove the section quantize, or convert to {held[0]}.",
        )


def _check_made(recipe: Recipe, section: str, model: str | None) -> Iterator[Problem]:
    """Refuse the name of a model that the recipe does not make."""
    made = ["teacher", *(stage.name for stage in recipe.stages)]
    made += [name for name in ("sft", "merge") if getattr(recipe, name)]
    if model not in made:
        yield (
            (section, "model"),
            f"{section} names {model!r}, which is not made. Models: {', '.join(made)}.",
        )


def _check_export(recipe: Recipe) -> Iterator[Problem]:
    export = recipe.export
    if export is None:
        return
    known = known_names("formats")
    for i, name in enumerate(export.formats):
        if name not in known:
            hint = did_you_mean(name, known)
            yield (
                ("export", "formats", i),
                f"{name!r} is not an export format. {hint}Known: {', '.join(known)}.",
            )
        if name in export.formats[:i]:
            yield ("export", "formats", i), f"{name} is listed twice. Remove one of them."
    yield from _check_made(recipe, "export", export.model)


def _check_merge(recipe: Recipe) -> Iterator[Problem]:
    merge = recipe.merge
    if merge is None:
        return
    converted = {stage.name: stage.converted for stage in recipe.stages}
    if recipe.sft:
        converted["sft"] = converted.get(str(recipe.sft.start_from), 0)
    for i, model in enumerate(merge.models):
        if model not in converted:
            yield (
                ("merge", "models", i),
                f"merge names {model!r}, which is not made. Models: {', '.join(converted)}.",
            )
    counts = {model: converted[model] for model in merge.models if model in converted}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{model} has {count}" for model, count in counts.items())
        yield (
            ("merge", "models"),
            f"merge needs models of one layout, but {listed} converted layers. "
            "Name models of the same stage.",
        )
    weights = merge.weights or ()
    if len(weights) != len(merge.models) or sum(weights) <= 0:
        yield (
            ("merge", "weights"),
            f"merge has {len(merge.models)} models and the weights {list(weights)}. "
            "Give one weight a model, not all zero.",
        )
    yield from _check_sweep(recipe)


def _check_sweep(recipe: Recipe) -> Iterator[Problem]:
    merge = recipe.merge
    if merge is None or merge.sweep is None:
        return
    path = ("merge", "sweep")
    if len(merge.models) != 2:
        yield path, f"merge.sweep tries weights of two models, but merge has {len(merge.models)}."
    if max(merge.sweep) > 1 or len(set(merge.sweep)) < len(merge.sweep):
        yield path, f"merge.sweep is {list(merge.sweep)}. Give different weights from 0 to 1."
    if recipe.evaluate is None or scoring_suite(recipe.evaluate) is None:
        yield path, "merge.sweep needs scores. Add the section evaluate with a suite like tasks."
