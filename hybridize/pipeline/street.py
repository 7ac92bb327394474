"""The nodes a recipe asks for, in order, and what each of them is: done, stale, begun or to do.

A node is done if its `result.json` was written with the settings and inputs the recipe asks for
at present. The identity of a node is the hash of its settings and of its inputs' identities, so
a change far up the street is seen by everything below it. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hybridize.core.artifacts import (
    RunFolder,
    changed_keys,
    hash_json,
    plain,
    read_json,
    read_result,
    write_json,
)
from hybridize.core.errors import RunError
from hybridize.core.recipe import Recipe
from hybridize.core.sections import Evaluate
from hybridize.core.sources import Blend, Source, Tasks
from hybridize.core.stored_text import StoredText
from hybridize.core.suites import (
    COMPARING,
    DIAGNOSIS,
    folder_name,
    has_own_text,
    more_suites,
    scoring_suite,
)

BEGUN = "begun.json"
_HARMLESS = ("checkpoint_every", "evaluate_every", "skip_bad_batches", "name")
_SAMPLING = ("samples", "temperature", "top_p")
"""Keys of `evaluate` that count where they differ from greedy answers."""
_SELECTING = ("suite", "limits", "diagnose", "every_stage")
"""Keys of `evaluate` that say what stops there are."""
_PROBED = {"optimizer", "schedule", "grad_clip", "dtype"}
"""Keys of `distill` that the short training of replace_one uses."""


@dataclass(frozen=True)
class Node:
    """One piece of work of a run, with a folder of its own."""

    name: str
    """`teacher`, `importance/leave_one_out`, `align`, `h6`, `eval/h6`, `eval/recall/h6`, `sft`,
    `merge`, `merge/sweep`, `bench`, `quantize/q8_0`, `quantize/served`, `export/stock`."""
    folder: Path
    settings: Mapping[str, Any]
    """Everything that decides its result, under the names of the recipe."""
    needs: tuple[str, ...] = ()
    """Names of the nodes it reads from."""


@dataclass(frozen=True)
class State:
    """What a node is at present."""

    kind: Literal["done", "stale", "begun", "to do"]
    changes: tuple[tuple[str, Any, Any], ...] = ()
    """stale: the recipe keys that changed, with the old and the new value."""
    because_of: str | None = None
    """stale: the node above it that is to blame, if it is not its own settings."""
    seconds: float | None = None
    """done: how long it took."""

    def __str__(self) -> str:
        return self.kind


@dataclass(frozen=True)
class Street:
    """All nodes of one recipe in one run folder, in the order of work."""

    nodes: tuple[Node, ...]
    identities: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def build(cls, recipe: Recipe, run: RunFolder, fingerprint: str) -> "Street":
        """List the nodes of a recipe; `fingerprint` is that of the teacher's weights."""
        nodes = tuple(_list_nodes(recipe, run, fingerprint))
        identities: dict[str, str] = {}
        for node in nodes:
            inputs = {name: identities[name] for name in node.needs}
            identities[node.name] = hash_json([node.settings, inputs])
        return cls(nodes, identities)

    def node(self, name: str) -> Node:
        """Return a node by name.

        Raises:
            RunError: no such node.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        names = ", ".join(node.name for node in self.nodes)
        raise RunError(f"{name!r} is not a stop of this recipe. Its stops: {names}.")

    def inputs(self, node: Node) -> dict[str, str]:
        """Return the identity of each input of a node."""
        return {name: self.identities[name] for name in node.needs}

    def states(self) -> dict[str, State]:
        """Tell the state of every node."""
        states: dict[str, State] = {}
        for node in self.nodes:
            states[node.name] = self._state(node, states)
        return states

    def _state(self, node: Node, states: Mapping[str, State]) -> State:
        result = read_result(node.folder)
        begun = node.folder / BEGUN
        if result is not None:
            settings, inputs = result.settings, result.inputs
        elif begun.exists():
            settings, inputs = (read_json(begun)[key] for key in ("settings", "inputs"))
        else:
            return State("to do")
        changes = changed_keys(settings, plain(node.settings))
        if changes:
            return State("stale", tuple(changes))
        if inputs != self.inputs(node):
            blamed = next((name for name in node.needs if states[name].kind != "done"), None)
            return State("stale", because_of=blamed or ", ".join(node.needs))
        return State("begun") if result is None else State("done", seconds=result.seconds)

    def dependents(self, name: str) -> list[Node]:
        """Return a node and all that read from it, directly or not, in order."""
        reached = {self.node(name).name}
        for node in self.nodes:
            if reached & set(node.needs):
                reached.add(node.name)
        return [node for node in self.nodes if node.name in reached]

    def mark_begun(self, node: Node) -> None:
        """Note the settings and inputs a node starts with, so that a change is seen on resume."""
        record = {"settings": plain(node.settings), "inputs": self.inputs(node)}
        write_json(node.folder / BEGUN, record)


def refuse_stale(states: Mapping[str, State]) -> None:
    """Raise RunError for the first stale node, naming what changed and the two ways out."""
    for name, state in states.items():
        if state.kind != "stale":
            continue
        if not state.changes:
            raise RunError(
                f"{name} is stale: {state.because_of} changed since. Redo it: --redo {name}."
            )
        changes = "\n".join(f"  {key}: {old} -> {new}." for key, old, new in state.changes)
        raise RunError(
            f"{name} is stale: its recipe changed since it ran.\n{changes}\n"
            f"  Keep it: put the old value back.   Redo it: --redo {name}"
        )


def _list_nodes(recipe: Recipe, run: RunFolder, fingerprint: str) -> list[Node]:
    teacher = {**recipe.teacher.model_dump(), "fingerprint": fingerprint}
    common = {"seed": recipe.seed, "data": _describe_data(recipe)}
    return [
        Node("teacher", run.path / "teacher", {"teacher": teacher}),
        *_list_measurements(recipe, run, common),
        *_list_evaluation(recipe, run, "teacher"),
        *_list_stages(recipe, run, common),
        *_list_last(recipe, run, common),
    ]


def _list_measurements(recipe: Recipe, run: RunFolder, common: Mapping[str, Any]) -> list[Node]:
    """List the measurements of the teacher; those of students belong to their stages."""
    nodes = []
    leave_one_out = recipe.measurement("leave_one_out")
    if leave_one_out:
        name = "importance/leave_one_out"
        settings = {**common, "importance": {"leave_one_out": leave_one_out.model_dump()}}
        nodes.append(Node(name, run.path / name, settings, ("teacher",)))
    if recipe.align:
        settings = {
            **common,
            "mixer": _without(recipe.mixer.model_dump(), ("init",)),
            "align": recipe.align.model_dump(),
            "distill": recipe.distill.model_dump(include={"dtype"}),
        }
        nodes.append(Node("align", run.align, settings, ("teacher",)))
    asked = {stage.rank_by for stage in recipe.stages}
    if recipe.measurement("replace_one") and "replace_one" not in asked:
        name = "importance/replace_one"
        needs = ("teacher", *_fresh_needs(recipe))
        nodes.append(Node(name, run.path / name, _probe(recipe, common), needs))
    return nodes


def _fresh_needs(recipe: Recipe) -> tuple[str, ...]:
    """List what fresh mixers are made from, beside the teacher."""
    return ("align",) if recipe.mixer.init == "aligned" else ()


def _probe(recipe: Recipe, common: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that decides a measurement by replace_one, but for its start."""
    replace_one = recipe.measurement("replace_one")
    assert replace_one is not None, "the recipe is checked: what stages rank by is measured"
    return {
        **common,
        "mixer": recipe.mixer.model_dump(),
        "importance": {"replace_one": replace_one.model_dump()},
        "distill": recipe.distill.model_dump(include=_PROBED),
    }


def _list_stages(recipe: Recipe, run: RunFolder, common: Mapping[str, Any]) -> list[Node]:
    nodes = []
    for index, stage in enumerate(recipe.stages):
        start = str(stage.start_from)
        ranking = "importance/leave_one_out"
        if stage.rank_by == "replace_one":
            ranking = f"importance/replace_one-{stage.name}"
            settings = {
                **_probe(recipe, common),
                "stages": {stage.name: {"start_from": start}},
            }
            needs = tuple(dict.fromkeys(("teacher", start, *_fresh_needs(recipe))))
            nodes.append(Node(ranking, run.path / ranking, settings, needs))
        own = {stage.name: _without(stage.model_dump(), _HARMLESS)}
        settings = {**common, "mixer": recipe.mixer.model_dump(), "stages": own}
        needs = tuple(dict.fromkeys(("teacher", start, ranking, *_fresh_needs(recipe))))
        nodes.append(Node(stage.name, run.stage(index, stage.name), settings, needs))
        last = index == len(recipe.stages) - 1
        if last or (recipe.evaluate and recipe.evaluate.every_stage):
            nodes += _list_evaluation(recipe, run, stage.name)
    return nodes


def _list_last(recipe: Recipe, run: RunFolder, common: Mapping[str, Any]) -> list[Node]:
    """List what comes after all stages: fine-tuning, merging, the bench, the exports."""
    nodes: list[Node] = []
    if recipe.sft:
        own = _without(recipe.sft.model_dump(), _HARMLESS)
        own["data"] = _with_hashes(recipe.sft.data)
        needs = tuple(dict.fromkeys(("teacher", str(recipe.sft.start_from))))
        nodes.append(Node("sft", run.sft, {**common, "sft": own}, needs))
        nodes += _list_evaluation(recipe, run, "sft")
    if recipe.merge:
        merge = recipe.merge.model_dump()
        own = {"merge": _without(merge, ("sweep",))}
        nodes.append(Node("merge", run.merge, own, recipe.merge.models))
        nodes += _list_evaluation(recipe, run, "merge")
        if recipe.merge.sweep is not None:
            own = {"merge": _without(merge, ("weights",)), **_score(recipe)}
            nodes.append(Node("merge/sweep", run.merge / "sweep", own, recipe.merge.models))
    if recipe.bench:
        settings: dict[str, Any] = {"seed": recipe.seed, "bench": recipe.bench.model_dump()}
        needs = ("teacher", *(stage.name for stage in recipe.stages))
        nodes.append(Node("bench", run.bench.parent, settings, needs))
    nodes += _list_quantised(recipe, run, common)
    for name in recipe.export.formats if recipe.export else ():
        assert recipe.export is not None and recipe.export.model is not None
        settings = {"export": {"format": name, "dtype": recipe.export.dtype}}
        folder = run.path / "export" / name
        nodes.append(Node(f"export/{name}", folder, settings, (recipe.export.model,)))
    return nodes


def _list_quantised(recipe: Recipe, run: RunFolder, common: Mapping[str, Any]) -> list[Node]:
    """List a node a type, and one that asks all of them in llama.cpp."""
    section = recipe.quantize
    if section is None:
        return []
    assert section.model is not None, "the recipe is complete"
    nodes = [
        Node(
            f"quantize/{name}",
            run.quantize / name,
            {**common, "quantize": {"type": name, "tokens": section.tokens}},
            (section.model,),
        )
        for name in section.types
    ]
    needs = (section.model, *(node.name for node in nodes))
    asked = {"types": list(section.types), **ask_in_engine(recipe)}
    return [*nodes, Node("quantize/served", run.quantize / "served", {"quantize": asked}, needs)]


def ask_in_engine(recipe: Recipe) -> dict[str, Any]:
    """Return what every quantised file is asked, by the names of `ServedSettings`."""
    assert recipe.quantize is not None, "only what is quantised is asked"
    asking = recipe.evaluate or Evaluate()
    return {
        "suite": scoring_suite(asking) or "tasks",
        "problems": recipe.quantize.problems,
        "max_new_tokens": asking.max_new_tokens,
    }


def _list_evaluation(recipe: Recipe, run: RunFolder, model: str) -> list[Node]:
    if recipe.evaluate is None:
        return []
    section = recipe.evaluate
    asked = _ask(section)
    nodes = []
    if scoring_suite(section) is not None:
        settings = _score(recipe)
        nodes.append(Node(f"eval/{model}", run.eval(model).with_suffix(""), settings, (model,)))
    more = {name: {"suite": name, "limit": limit} for name, limit in more_suites(section).items()}
    found: dict[str, dict[str, Any]] = {
        folder_name(name): own if name in COMPARING else {**_without(asked, ("problems",)), **own}
        for name, own in more.items()
    }
    if section.diagnose:
        found[DIAGNOSIS] = {"diagnose": True}
    for folder, own in found.items():
        beside = own.get("suite") in COMPARING or folder == DIAGNOSIS
        if beside and model == "teacher":
            continue
        name = f"eval/{folder}/{model}"
        needs = ("teacher", model) if beside else (model,)
        settings = {"seed": recipe.seed, "evaluate": own}
        if beside and has_own_text(recipe):
            settings["data"] = _describe_data(recipe)
        nodes.append(Node(name, run.path / name, settings, needs))
    return nodes


def _ask(section: Evaluate) -> dict[str, Any]:
    """Return the settings of a suite that asks, but for its name."""
    default, given = type(section)().model_dump(), section.model_dump()
    unsaid = tuple(key for key in _SAMPLING if given[key] == default[key])
    return _without(given, (*_SELECTING, *unsaid))


def _score(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of the scores in `eval/` itself."""
    assert recipe.evaluate is not None, "the recipe is checked: what is scored has a suite"
    asked = {**_ask(recipe.evaluate), "suite": scoring_suite(recipe.evaluate)}
    return {"seed": recipe.seed, "evaluate": asked}


def _describe_data(recipe: Recipe) -> dict[str, Any]:
    """Return what decides the rows; a share held out only where something is."""
    values = _without(recipe.data.model_dump(), ("cache", "heldout_share"))
    for part in ("train", "heldout"):
        values[part] = _with_hashes(getattr(recipe.data, part))
    if recipe.data.heldout_share is not None:
        values["heldout_share"] = recipe.data.heldout_share
    return values


def _with_hashes(source: Source | None) -> dict[str, Any] | None:
    """Return a source with the hash of its files, so that a changed file is seen."""
    if source is None:
        return None
    values: dict[str, Any] = source.model_dump()
    if isinstance(source, Blend):
        values["sources"] = {str(n): _with_hashes(part) for n, part in enumerate(source.sources)}
    elif not isinstance(source, Tasks):
        values["sha256"] = StoredText.of(source).checksum()
    return values


def _without(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}
