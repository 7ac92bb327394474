"""The public verbs: load, measure, convert, distil, merge, evaluate, run; one a command.

    import hybridize as hz

    teacher = hz.load_teacher("shipped")
    data = hz.make_tasks(teacher.tokenizer, sequence_length=512)
    importance = hz.measure_importance(teacher, data, tokens="32k")
    layout = teacher.layout.convert(importance.least(4), to="mamba2")
    student = hz.convert(teacher, layout, source=teacher)
    student = hz.distill(student, teacher, data, tokens="300k", settings={"tokens_per_step": 8192})
    print(hz.evaluate([teacher, student], problems=20))

A verb changes none of its arguments, prints nothing, and writes only where `out` is given.
`settings` are those of the recipe's section of the same name, checked like a recipe.
"""

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hybridize.core.errors import RecipeError, RunError
from hybridize.core.importance import Importance
from hybridize.core.layout import Layout
from hybridize.core.quantities import parse_tokens
from hybridize.core.recipe import Recipe
from hybridize.core.sections import Bench as BenchSection
from hybridize.core.sections import Evaluate, LeaveOneOut, ReplaceOne
from hybridize.core.stored_text import StoredText
from hybridize.evaluation.subjects import Subject
from hybridize.models.folders import find_folder
from hybridize.models.model import Model, load
from hybridize.pipeline import run_recipe
from hybridize.pipeline.translate import make_calibration, make_fit_settings
from hybridize.report.run_data import RunData, read_run
from hybridize.stages import bench as bench_stage
from hybridize.stages import convert as convert_stage
from hybridize.stages import distill as distill_stage
from hybridize.stages import evaluate as evaluate_stage
from hybridize.stages import export as export_stage
from hybridize.stages import importance as importance_stage
from hybridize.stages import merge as merge_stage
from hybridize.stages import sft as sft_stage
from hybridize.surgery.aligned import AlignedMixers
from hybridize.surgery.fresh import FreshSettings
from hybridize.training.data import TaskRows, Tokenizer, TokenSource
from hybridize.training.device import choose_device
from hybridize.training.metrics import ConsoleLine, Progress
from hybridize.training.settings import FitSettings
from hybridize.training.text_rows import TextRows, read_settings

CALIBRATION_TOKENS = 16_384
Settings = Mapping[str, Any]
Done = Callable[[int, int], None]


def load_model(
    model: Path | str,
    *,
    name: str | None = None,
    dtype: str | None = "float32",
    revision: str | None = None,
    device: str | None = None,
) -> Model:
    """Load a teacher or a student; `name` is how tables call it, by default after its folder.

    A dtype of None keeps the one the tensors are saved in.

    Raises:
        ModelError: no such model, damaged, unsafe to read, or of an unknown family.
        MachineError: this machine has no such device.
    """
    folder = Path(model)
    found = name or (folder.parent.name if folder.name == "model" else folder.name)
    loaded = load(model, name=found, dtype=dtype, revision=revision)
    network: Any = loaded.network
    network.to(choose_device(device))
    return loaded


def load_teacher(
    model: Path | str = "shipped",
    *,
    dtype: str = "float32",
    revision: str | None = None,
    device: str | None = None,
) -> Model:
    """Load the model to convert: a folder, a hub id, or the small teacher of this package."""
    return load_model(model, name="teacher", dtype=dtype, revision=revision, device=device)


def load_text(
    path: Path | str,
    *,
    tokenizer: Tokenizer,
    sequence_length: int,
    seed: int = 0,
    keys: Mapping[str, str] | None = None,
    settings: Settings | None = None,
    cache: Path | str | None = None,
) -> TextRows:
    """Read a JSONL or parquet file, a dataset's folder or a hub id as packed rows.

    Args:
        path: a pattern such as `data/*.jsonl` reads several files as one.
        keys: part of a document -> its name in the file, such as {"prompt": "question",
            "completion": "answer"}, {"text": ...} or {"messages": ...}; by default found.
        settings: `split` (all, train, heldout), `heldout_share` and `long_documents`.
        cache: folder that keeps the tokens for the next time; None makes a temporary one.

    Raises:
        RunError: the text is missing or empty, or a record cannot be read; with its place.
        MachineError: a package that reads the text is not installed.
    """
    how = read_settings(settings or {})
    source = StoredText.find(str(path), keys)
    return TextRows(
        source, tokenizer, sequence_length=sequence_length, seed=seed, settings=how, cache=cache
    )


def make_tasks(
    tokenizer: Tokenizer,
    *,
    sequence_length: int,
    seed: int = 0,
    heldout: bool = False,
    mix: Mapping[str, float] | None = None,
) -> TokenSource:
    """Make packed rows of reasoning problems; the held-out ones occur in no training row."""
    split: Literal["train", "heldout"] = "heldout" if heldout else "train"
    return TaskRows(tokenizer, sequence_length=sequence_length, seed=seed, split=split, mix=mix)


def measure_importance(
    model: Model,
    heldout: TokenSource,
    *,
    tokens: str | int | None = None,
    settings: LeaveOneOut | ReplaceOne | None = None,
    teacher: Model | None = None,
    data: TokenSource | None = None,
    mixer: str | AlignedMixers = "mamba2",
    out: Path | None = None,
) -> Importance:
    """Score each layer by leaving it out, or by replacing it and training shortly.

    Args:
        tokens: held-out tokens a layer is measured on; by default those of `settings`.
        settings: how; leave_one_out by default. replace_one needs `teacher` and `data`.
        mixer: replace_one: kind of the mixer that is swapped in, or what `align` made.
        out: folder for the scores so far; a second call goes on from them.
    """
    asked = settings or LeaveOneOut()
    num_tokens = asked.tokens if tokens is None else parse_tokens(tokens)
    if isinstance(asked, LeaveOneOut):
        how = importance_stage.LeaveOneOutSettings(
            metric=asked.metric, scope=asked.scope, tokens=num_tokens, problems=asked.problems
        )
        return importance_stage.leave_one_out(model, heldout, how, out)
    source = heldout if data is None else data
    values = {
        "optimizer": {"lr": asked.lr},
        "tokens_per_step": asked.tokens_per_step,
        "train": asked.train,
    }
    training = _fit_settings(values, source, max(1, asked.steps) * asked.tokens_per_step)
    probe = importance_stage.ReplaceOneSettings(
        mixer=mixer if isinstance(mixer, str) else mixer.kind,
        fresh=FreshSettings() if isinstance(mixer, str) else FreshSettings.of(mixer),
        tokens=num_tokens,
        steps=asked.steps,
        training=training,
    )
    return importance_stage.replace_one(model, teacher or model, source, heldout, probe, out)


def convert(
    model: Model,
    layout: Layout,
    *,
    source: Model | None = None,
    init: str | AlignedMixers = "from_attention",
    options: Settings | None = None,
    seed: int = 0,
    calibrate_on: TokenSource | None = None,
    out: Path | None = None,
) -> Model:
    """Return a model of another layout, named `h<converted>`; only layers that differ change.

    Args:
        source: whose attention the fresh mixers start from; by default `model`.
        init: from_attention, random, or what `align` made.
        calibrate_on: text whose first tokens the fresh mixers are fitted on, in closed form.
    """
    rows = None if calibrate_on is None else make_calibration(calibrate_on, CALIBRATION_TOKENS)
    return convert_stage.run(
        model,
        layout,
        FreshSettings.of(init, options=options, seed=seed),
        out,
        source=source or model,
        name=f"h{len(layout.converted)}",
        calibration=rows,
    )


def distill(
    student: Model,
    teacher: Model,
    data: TokenSource,
    *,
    tokens: str | int,
    settings: Settings | None = None,
    heldout: TokenSource | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Model:
    """Return `student` trained towards `teacher` for `tokens`.

    Raises:
        RecipeError: a setting is not known or has a wrong type.
        RunError: a loss is not finite, or the checkpoint in `out` is of another run.
        Interrupted: stopped by a signal; the same call with `out` goes on.
    """
    section = _read(settings, data).distill
    how = distill_stage.DistillSettings(
        training=_fit_settings(settings, data, tokens),
        loss=section.loss,
        temperature=section.temperature,
    )
    _check_tokens(student, data)
    trained = _copy(student)
    distill_stage.run(trained, teacher, data, how, out, heldout=heldout, progress=progress)
    return trained


def sft(
    student: Model,
    data: TokenSource,
    *,
    tokens: str | int,
    settings: Settings | None = None,
    heldout: TokenSource | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Model:
    """Return `student` trained on the completions of `data` for `tokens`; raises like `distill`."""
    how = sft_stage.SftSettings(training=_fit_settings(settings, data, tokens))
    _check_tokens(student, data)
    trained = _copy(student)
    sft_stage.run(trained, data, how, out, heldout=heldout, progress=progress)
    return trained


def merge(
    models: Sequence[Model], *, weights: Sequence[float] = (), method: str = "linear"
) -> Model:
    """Return one model from several of the same layout; no weights means all alike.

    Raises:
        ModelError: layouts differ, an unknown method, or weights that do not fit.
    """
    return merge_stage.run(models, merge_stage.MergeSettings(method=method, weights=tuple(weights)))


def export(
    model: Model | Path | str,
    out: Path | str,
    *,
    format: str | None = None,
    dtype: str | None = None,
    verify: bool = True,
    prompts: Sequence[str] = (),
) -> export_stage.Exported:
    """Write a model in the layout another project reads, with tokenizer, recipe and model card.

    Args:
        model: or its folder, whose card is kept, and the recipe where it lies in that of a run.
        out: appears whole and verified, or not at all.
        format: see `hybridize ls exports`; None is "stock" where a class of transformers holds the
            model exactly, else "hybridize".
        dtype: type of the weights; None keeps the model's.
        verify: whether the folder must first answer as the model does.
        prompts: texts to verify with; problems of the built-in tasks where there are none.

    Raises:
        ModelError: the format cannot hold the model exactly, or what was written answers otherwise.
        MachineError: the disk is full or refuses.
    """
    origin = None if isinstance(model, Model) else export_stage.find_origin(find_folder(model))
    how = export_stage.ExportSettings(format=format, dtype=dtype, verify=verify, prompts=prompts)
    loaded = model if isinstance(model, Model) else load_model(model, dtype=None)
    return export_stage.run(loaded, how, out, origin=origin)


def evaluate(
    models: Sequence[Model | Subject],
    *,
    suite: str = "tasks",
    problems: int = Evaluate().problems,
    max_new_tokens: int = Evaluate().max_new_tokens,
    batch: int = Evaluate().batch,
    out: Path | None = None,
    progress: Done | None = None,
    **more: Any,
) -> evaluate_stage.Scores:
    """Ask all models the same held-out problems, and compare each with the first.

    Args:
        out: folder for `<model>.json` and the answers of each.
        more: further fields of `hybridize.stages.evaluate.EvaluateSettings`, such as `samples`.
    """
    how = evaluate_stage.EvaluateSettings(
        suite=suite, problems=problems, max_new_tokens=max_new_tokens, batch=batch, **more
    )
    return evaluate_stage.run_all(models, how, out, progress=progress)


def bench(
    models: Sequence[Model],
    *,
    context_tokens: Sequence[int] = BenchSection().context_tokens,
    output_tokens: int = BenchSection().output_tokens,
    batch: int = BenchSection().batch,
    repeats: int = BenchSection().repeats,
    out: Path | None = None,
    progress: Done | None = None,
) -> bench_stage.Bench:
    """Time prefill and decoding of all models in turn, and count their cache bytes."""
    how = bench_stage.BenchSettings(
        context_tokens=tuple(context_tokens),
        output_tokens=output_tokens,
        batch=batch,
        repeats=repeats,
    )
    return bench_stage.run(models, how, out, progress=progress)


def run(
    recipe: Path | str,
    out: Path | str | None = None,
    *,
    overrides: Sequence[str] = (),
    until: str | None = None,
    device: str | None = None,
) -> RunData:
    """Run a recipe, or continue it, and return what is in its folder; raises like `run_recipe`."""
    return read_run(run_recipe(recipe, out, overrides=overrides, until=until, device=device))


def open_run(folder: Path | str) -> RunData:
    """Read a run folder, finished or not; damaged files are left out and named in `damaged`.

    Raises:
        RunError: it is not a run folder.
    """
    return read_run(folder)


def show_steps(name: str) -> ConsoleLine:
    """Make a `progress` that shows training on the standard error, under `name`."""
    return ConsoleLine(name, sys.stderr)


def _check_tokens(model: Model, data: TokenSource) -> None:
    """Refuse text of another tokenizer, before an embedding is asked for what it has not."""
    largest, size = getattr(data, "largest_token", 0), model.network.config.vocab_size
    if largest >= size:
        raise RunError(
            f"data has the token {largest}, but {model.name} has embeddings for {size} tokens. "
            "Load it with the model's own tokenizer."
        )


def _copy(model: Model) -> Model:
    return Model(model.name, copy.deepcopy(model.network), model.tokenizer)


def _read(settings: Settings | None, data: TokenSource) -> Recipe:
    """Check settings of training as the `distill` section of a recipe on this data."""
    values = {
        "version": 1,
        "teacher": {"model": "shipped"},
        "data": {"sequence_length": data.sequence_length},
        "distill": dict(settings or {}),
    }
    return Recipe.from_values(values, name="settings")


def _fit_settings(settings: Settings | None, data: TokenSource, tokens: str | int) -> FitSettings:
    recipe, budget = _read(settings, data), parse_tokens(tokens)
    if budget < recipe.distill.tokens_per_step:
        raise RecipeError(
            f"a budget of {budget} tokens is less than one step of "
            f"{recipe.distill.tokens_per_step}. Raise tokens or lower tokens_per_step."
        )
    return make_fit_settings(recipe.distill, recipe, tokens=budget)
