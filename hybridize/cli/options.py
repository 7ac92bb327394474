"""Options and arguments that several commands share, and how output is written."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

WHERE, RECIPE, MACHINE = "Where", "Recipe", "Machine"

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Recipe file, or the name of a shipped recipe.")
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Model folder, hub id, or `shipped`.")
]
ModelsArgument = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Model folders, hub ids, or `shipped`.")
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        rich_help_panel=RECIPE,
        help="Override one recipe value, e.g. distill.optimizer.lr=1e-4; may be repeated.",
    ),
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="FILE",
        rich_help_panel=RECIPE,
        help="Recipe to take the settings of this stage from; defaults otherwise.",
    ),
]
TeacherOption = Annotated[
    str, typer.Option(metavar="MODEL", rich_help_panel=RECIPE, help="Teacher of the student.")
]
OutOption = Annotated[
    Path, typer.Option(metavar="DIR", rich_help_panel=WHERE, help="Folder to write the model to.")
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=MACHINE,
        envvar="HYBRIDIZE_DEVICE",
        help="Device to compute on, e.g. cpu; the best present where it is left out.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def say(text: str) -> None:
    """Write a line of progress to the standard error."""
    typer.echo(text, err=True)


def show(text: str) -> None:
    """Write a result to the standard output."""
    typer.echo(text)


def show_json(value: Any) -> None:
    """Write a result to the standard output as JSON."""
    from hybridize.core.artifacts import plain

    typer.echo(json.dumps(plain(value), indent=1, ensure_ascii=False))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of cells in columns; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
