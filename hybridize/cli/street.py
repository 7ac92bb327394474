"""Commands that walk the street of a recipe: run and status."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybridize.cli.options import (
    MACHINE,
    WHERE,
    DeviceOption,
    JsonOption,
    RecipeArgument,
    SetOption,
    list_facts,
    say,
    show,
    show_json,
    table,
)

if TYPE_CHECKING:
    from hybridize.core.recipe import Recipe
    from hybridize.core.shape import ModelShape

WHAT = "What to do"
LOOK_EVERY_SECONDS = 2.0

UntilOption = Annotated[
    str | None,
    typer.Option(
        metavar="STOP",
        rich_help_panel=WHAT,
        help="Stop after this: importance, plan, a stage, sft, merge, bench, report.",
    ),
]
RedoOption = Annotated[
    list[str],
    typer.Option(
        metavar="STOP",
        rich_help_panel=WHAT,
        help="Run this again, and all that depends on it; may be repeated.",
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", rich_help_panel=WHAT, help="Say what would be done; change nothing."),
]
RunOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", rich_help_panel=WHERE, help="Run folder; runs/NAME by default."),
]
MaxHoursOption = Annotated[
    float | None,
    typer.Option(
        metavar="H",
        rich_help_panel=MACHINE,
        help="Stop cleanly, with a checkpoint, after so many hours.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        epilog="Examples: hybridize run tiny.yaml --until plan (look before you train); "
        "hybridize run tiny.yaml --redo h8"
    )(run)
    app.command(epilog="Example: hybridize status runs/tiny --json")(status)


def run(
    recipe: RecipeArgument,
    until: UntilOption = None,
    redo: RedoOption = [],  # noqa: B006  typer copies it
    dry_run: DryRunOption = False,
    out: RunOption = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    device: DeviceOption = None,
    max_hours: MaxHoursOption = None,
) -> None:
    """Convert a teacher as RECIPE says, or continue where it stopped."""
    from hybridize.cli.teacher import read_shape
    from hybridize.core.plan import make_plan
    from hybridize.core.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    folder = out or Path("runs") / loaded.name
    shape = read_shape(loaded.teacher.model, loaded.teacher.revision)
    make_plan(loaded, shape)
    if dry_run:
        show(_states(loaded, folder, redo))
        return
    from hybridize.cli.watch import Watcher, prepare_machine
    from hybridize.pipeline import run_recipe

    prepare_machine()
    say(_panel(loaded, shape, folder))
    run_recipe(
        recipe,
        folder,
        overrides=overrides,
        until=until,
        redo=redo,
        max_hours=max_hours,
        device=device,
        observer=Watcher(),
    )
    _show_outcome(folder)


def _show_outcome(folder: Path) -> None:
    """Print the verdict, if the run came so far, and where its report is."""
    from hybridize.core.artifacts import RunFolder
    from hybridize.report import verdict

    page = RunFolder(folder).report / "index.html"
    if page.exists():
        show(verdict(folder))
    show(str(page if page.exists() else folder))


def status(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    as_json: JsonOption = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Say it again whenever it changes, until all is done.")
    ] = False,
) -> None:
    """Say what of a run is done, running, stale or to do."""
    from hybridize.core.artifacts import RunFolder, read_json
    from hybridize.core.errors import RunError

    if not RunFolder(folder).status.exists():
        raise RunError(
            f"{folder} is not a run folder: it has no status.json. "
            "Give the folder that `hybridize run` wrote."
        )
    shown = None
    while True:
        found = read_json(RunFolder(folder).status)
        if found != shown:
            show_json(found) if as_json else show(_stops(found["nodes"]))
        shown = found
        if not watch or all(node["state"] == "done" for node in found["nodes"]):
            return
        time.sleep(LOOK_EVERY_SECONDS)


def _stops(nodes: list[dict[str, Any]]) -> str:
    """Print the state of each stop, and the time of those that are done."""
    from hybridize.core.quantities import short_seconds

    rows = [("stop", "state", "time")]
    for node in nodes:
        seconds = node["seconds"]
        rows.append((node["node"], node["state"], short_seconds(seconds) if seconds else ""))
    return table(rows)


def _states(recipe: "Recipe", folder: Path, redo: list[str]) -> str:
    """Print what a run would do with each stop."""
    from hybridize.pipeline import open_street

    street = open_street(recipe, folder)
    again = {node.name for name in redo for node in street.dependents(name)}
    words = {"done": "skip", "begun": "continue", "to do": "run", "stale": "stale: refuse"}
    rows = [("stop", "would")]
    for name, state in street.states().items():
        rows.append((name, "redo" if name in again else words[state.kind]))
    return table(rows)


def _panel(recipe: "Recipe", shape: "ModelShape", folder: Path) -> str:
    """Print what will be done, before it is."""
    head = f"hybridize run  {recipe.name}  {folder}"
    facts = [f"  {label:<10}{text}" for label, text in list_facts(recipe, shape)]
    return "\n".join([head, *facts])
