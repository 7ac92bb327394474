"""The street: run what a recipe asks for, in order, skip what is done, continue what was begun.

    >>> from hybridize.pipeline import run_recipe
    >>> run = run_recipe("tiny", out="runs/tiny", until="plan")      # doctest: +SKIP

Read `street.py` (what there is to do) before `actions.py` (how each thing is done).
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hybridize.core.artifacts import RESULT, RunFolder, write_json, write_result, write_text
from hybridize.core.catalog import RECIPES
from hybridize.core.errors import Interrupted, RunError
from hybridize.core.recipe import Recipe, load_recipe
from hybridize.core.settings import read_settings
from hybridize.core.suites import HARNESS, need_harness
from hybridize.core.trackers import find_trackers
from hybridize.pipeline.environment import describe_environment
from hybridize.pipeline.interrupts import how_to_continue, say_where
from hybridize.pipeline.observer import Observer
from hybridize.pipeline.street import BEGUN, Node, State, Street, refuse_stale
from hybridize.pipeline.teacher import fingerprint

if TYPE_CHECKING:
    from hybridize.pipeline.actions import Actions
    from hybridize.training.distributed import Calls

GROUPS = ("importance", "plan", "eval", "quantize", "report")


def open_street(recipe: Recipe, out: Path) -> Street:
    """Return the nodes of a recipe in a run folder; loads no weights and no torch."""
    return Street.build(recipe, RunFolder(out), fingerprint(recipe.teacher))


def run_recipe(
    recipe_path: Path | str,
    out: Path | str | None = None,
    *,
    overrides: Sequence[str] = (),
    until: str | None = None,
    redo: Sequence[str] = (),
    max_hours: float | None = None,
    device: str | None = None,
    observer: Observer | None = None,
) -> Path:
    """Run a recipe, or continue it where it stopped; return the run folder.

    Of processes that torchrun started the first does this, and the others train with it.

    Args:
        until: last node to run: a stage, `importance`, `plan`, `sft`, `merge`, `bench`, ...
        redo: nodes to run again, with all that depend on them.
        max_hours: stop cleanly after so many hours and the step, layer or node that is under way.

    Raises:
        RecipeError: the recipe is wrong, or asks for the impossible.
        RunError: a node is stale; the message names what changed and how to redo it.
        Interrupted: stopped by a signal or by `max_hours`; all that was finished is kept.
        MachineError: the package of a tracker or a suite the recipe names is not installed.
    """
    recipe, processes = load_recipe(recipe_path, overrides), read_settings()
    folder = Path(out) if out else Path("runs") / recipe.name
    watcher = observer if observer and processes.rank == 0 else Observer()
    _need_packages(recipe)
    deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours

    def make_actions(device: str | None, calls: "Calls | None" = None) -> "Actions":
        from hybridize.pipeline.actions import Actions

        return Actions(recipe, RunFolder(folder), device, watcher, _stop_at(deadline), calls)

    def lead(device: str | None, calls: "Calls | None" = None) -> None:
        street = open_street(recipe, folder)
        states = _prepare(street, recipe, until, redo)
        _write_recipe(recipe, recipe_path, RunFolder(folder))
        _walk(street, states, make_actions(device, calls), watcher)
        if until is None or until == "report":
            _write_report(recipe, RunFolder(folder))

    if processes.num_ranks == 1:
        lead(device)
    else:
        _run_ranks(device, processes.local_rank, lead, make_actions)
    return folder


def _run_ranks(
    device: str | None,
    place: int,
    lead: Callable[[str, "Calls"], None],
    make_actions: Callable[[str, "Calls"], "Actions"],
) -> None:
    """Let the first of the processes that torchrun started lead, and the others follow it."""
    from hybridize.pipeline.training import follow, outline_teacher
    from hybridize.training.device import process_group
    from hybridize.training.distributed import Calls, Ranks

    with process_group(device, place) as own:
        calls, ranks = Calls(), Ranks.world()
        follower = None if ranks.is_first else make_actions(str(own), calls)
        with ranks.together():
            if follower is not None:
                outline_teacher(follower)
        if follower is not None:
            follow(follower)
        else:
            lead(str(own), calls)
            calls.send(None)


def _need_packages(recipe: Recipe) -> None:
    """Check that what the run will need at some point is installed, before it begins."""
    find_trackers(recipe.track)
    if recipe.evaluate and any(name.startswith(HARNESS) for name in recipe.evaluate.suite):
        need_harness()
    if recipe.quantize:
        from hybridize.stages.quantize import check_types

        check_types(recipe.quantize.types)


def _prepare(
    street: Street, recipe: Recipe, until: str | None, redo: Sequence[str]
) -> dict[str, State]:
    """Return the nodes to walk and their states; forget what is redone, refuse what is stale."""
    nodes = _until(street, recipe, until)
    for node in reversed([node for name in redo for node in street.dependents(name)]):
        _forget(node.folder)
    states = street.states()
    refuse_stale({node.name: states[node.name] for node in nodes})
    return {node.name: states[node.name] for node in nodes}


def _walk(
    street: Street, states: Mapping[str, State], actions: "Actions", watcher: Observer
) -> None:
    """Run the nodes that are not done, in order."""
    folder = actions.folder.path
    write_json(
        actions.folder.environment, describe_environment(actions.recipe.seed, actions.device)
    )
    has_worked = False
    for name, state in states.items():
        if state.seconds is not None:
            watcher.node_finished(name, state.seconds, skipped=True)
            continue
        try:
            if has_worked and actions.stop():
                raise Interrupted(how_to_continue(f"before {name}", folder))
            write_status(street, folder, running=name)
            watcher.node_started(name)
            seconds = _run_node(street, street.node(name), actions)
        except (Interrupted, KeyboardInterrupt) as asked:
            write_status(street, folder)
            raise say_where(asked, name, folder) from None
        has_worked = True
        watcher.node_finished(name, seconds, skipped=False)
    write_status(street, folder)


def _run_node(street: Street, node: Node, actions: "Actions") -> float:
    """Do the work of a node; what it needs to continue is removed once its result stands."""
    started = time.monotonic()
    street.mark_begun(node)
    values = actions.run(node)
    seconds = time.monotonic() - started
    write_result(
        node.folder,
        node.name,
        settings=node.settings,
        inputs=street.inputs(node),
        values=values,
        seconds=seconds,
    )
    (node.folder / BEGUN).unlink(missing_ok=True)
    _forget(node.folder / "checkpoint")
    return seconds


def _write_report(recipe: Recipe, run: RunFolder) -> None:
    """Write the report, and a model card into every model folder."""
    from hybridize.report import build_report, model_card

    models = sorted(run.path.glob("**/model/config.json"))
    for path in models:
        node = path.parent.parent.name
        name = node.partition("-")[2] if path.parents[2].name == "stages" else node
        write_text(path.with_name("README.md"), model_card(run.path, name))
    if recipe.report:
        build_report(run.path, recipe.report.format)


def write_status(street: Street, folder: Path, running: str | None = None) -> dict[str, State]:
    """Write `status.json` of a run folder and return the states it tells."""
    states = street.states()
    write_json(
        RunFolder(folder).status,
        {
            "nodes": [
                {
                    "node": name,
                    "state": "running" if name == running else state.kind,
                    "seconds": state.seconds,
                }
                for name, state in states.items()
            ]
        },
    )
    return states


def _until(street: Street, recipe: Recipe, until: str | None) -> list[Node]:
    names = [node.name for node in street.nodes]
    if until is None or until == "report":
        return list(street.nodes)
    group = "importance" if until == "plan" else until
    places = [
        place for place, name in enumerate(names) if name == until or name.startswith(f"{group}/")
    ]
    if until in ("plan", "importance") and places:
        first_stage = min([names.index(stage.name) for stage in recipe.stages[:1]], default=None)
        places = [place for place in places if first_stage is None or place < first_stage]
    if not places:
        stops = ", ".join(dict.fromkeys([*GROUPS, *names]))
        raise RunError(f"--until {until}: the recipe has no such stop. Its stops: {stops}.")
    return list(street.nodes[: places[-1] + 1])


def _forget(folder: Path) -> None:
    """Remove a folder; its result first, so that a node half removed is not taken for done."""
    (folder / RESULT).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def _stop_at(deadline: float | None) -> Callable[[], bool]:
    return lambda: deadline is not None and time.monotonic() > deadline


def _write_recipe(recipe: Recipe, path: Path | str, run: RunFolder) -> None:
    given = Path(path) if Path(path).exists() else RECIPES / f"{path}.yaml"
    write_text(run.recipe, given.read_text(encoding="utf-8"))
    write_text(run.resolved_recipe, recipe.resolved())
