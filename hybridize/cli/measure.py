"""The command eval: models compared in one table, on the same held-out problems."""

from pathlib import Path
from typing import Annotated

import typer

from hybridize.cli.options import (
    WHERE,
    DeviceOption,
    JsonOption,
    ModelsArgument,
    say,
    show,
    show_json,
)

OutFolder = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", rich_help_panel=WHERE, help="Folder for JSON files."),
]


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("eval", epilog="Example: hybridize eval shipped out/h2 --limit 20")(evaluate)


def evaluate(
    models: ModelsArgument,
    suite: Annotated[str, typer.Option(metavar="NAME", help="See `hybridize ls suites`.")] = (
        "tasks"
    ),
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Problems of each kind.")] = 100,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Problems at once.")] = 32,
    out: OutFolder = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask models the same held-out problems and score what they generate."""
    from hybridize import api
    from hybridize.cli.watch import prepare_machine
    from hybridize.core.catalog import did_you_mean, known_names
    from hybridize.core.errors import RecipeError

    known = known_names("suites")
    if suite not in known:
        hint = did_you_mean(suite, known)
        raise RecipeError(f"eval --suite {suite}: not known. {hint}Known: {', '.join(known)}.")
    prepare_machine()
    scores = api.evaluate(
        [api.load_model(model, device=device) for model in models],
        suite=suite,
        problems=limit,
        batch=batch,
        out=out,
        progress=lambda done, total: say(f"{done}/{total}") if done == total else None,
    )
    if as_json:
        show_json(scores)
    else:
        show(repr(scores))
