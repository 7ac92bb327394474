"""Options and arguments that several commands share, and how output is written."""

import json
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hybridize.core.recipe import Recipe
    from hybridize.core.shape import ModelShape

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
_quiet = ContextVar("quiet", default=False)
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def say(text: str) -> None:
    """Write a line of progress to the standard error, unless `--quiet` was given."""
    if not is_quiet():
        complain(text)


def complain(text: str) -> None:
    """Write an error to the standard error."""
    if _speaks():
        typer.echo(text, err=True)


def is_quiet() -> bool:
    """Tell whether progress is not to be shown."""
    return _quiet.get()


def set_quiet(quiet: bool) -> None:
    """Show progress from here on, or do not."""
    _quiet.set(quiet)


def show(text: str) -> None:
    """Write a result to the standard output."""
    if _speaks():
        typer.echo(text)


def _speaks() -> bool:
    """Tell whether this is the process that prints: the first of those that torchrun started."""
    from hybridize.core.settings import read_settings

    return read_settings().rank == 0


def show_json(value: Any) -> None:
    """Write a result to the standard output as JSON."""
    from hybridize.core.artifacts import plain

    typer.echo(json.dumps(plain(value), indent=1, ensure_ascii=False))


def list_facts(recipe: "Recipe", shape: "ModelShape") -> list[tuple[str, str]]:
    """List what a recipe asks for, in the few lines that are worth reading before a run."""
    from hybridize.core.quantities import short_count
    from hybridize.core.suites import tell_evaluation, tell_quantization

    students = " -> ".join(stage.name for stage in recipe.stages) or "none"
    tokens = sum(stage.tokens for stage in recipe.stages)
    more = f", {short_count(recipe.sft.tokens)} in sft" if recipe.sft else ""
    more += f", {short_count(recipe.align.tokens)} in align" if recipe.align else ""
    facts = [
        ("teacher", f"{recipe.teacher.model}  {shape.num_layers} layers  {shape.family}"),
        ("", f"{short_count(shape.parameters())} parameters  {recipe.teacher.dtype}"),
        ("student", f"{students}  {recipe.mixer.kind}  {recipe.mixer.init}"),
        ("tokens", f"{short_count(tokens)} in {len(recipe.stages)} stages{more}"),
        ("before", str(shape.layout())),
    ]
    if recipe.stages:
        last = max(stage.converted for stage in recipe.stages)
        facts.append(("after", f"{last} of {shape.num_layers} converted, chosen by measurement"))
    told = list(tell_evaluation(recipe))
    if len(told) > 1:
        facts += [("" if row else "evaluate", text) for row, text in enumerate(told)]
    facts += [("quantize", text) for text in tell_quantization(recipe)]
    return facts


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of cells in columns; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def name_model(model: str) -> str:
    """Return how a model is called: after its folder or file, or its stage in a run's folder."""
    path = Path(model).absolute()
    if path.name != "model":
        return path.stem if path.suffix == ".gguf" else path.name
    stage = path.parent
    is_numbered = stage.parent.name == "stages" and stage.name[:2].isdigit()
    return stage.name[3:] if is_numbered else stage.name
