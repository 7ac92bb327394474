"""Commands that write a model anew: export (for another project), consolidate (a checkpoint)."""

from pathlib import Path
from typing import Annotated

import typer

from hybridize.cli.options import ModelArgument, show


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(epilog="Example: hybridize export out/h2 out/h2-apriel --format apriel-h1")(export)
    app.command(
        epilog="Example: hybridize consolidate runs/tiny/stages/01-h6/checkpoint out/h6-so-far"
    )(consolidate)


def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    format_name: Annotated[
        str, typer.Option("--format", metavar="NAME", help="See `hybridize ls formats`.")
    ],
) -> None:
    """Write a model in the layout of another project, exactly or not at all."""
    from hybridize import api

    show(str(api.export(api.load_model(model, dtype=None), out, format=format_name)))


def consolidate(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="Folder `checkpoint` of a stage, in its run."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
) -> None:
    """Write the model of an unfinished stage, by however many processes it was trained."""
    from hybridize.pipeline.consolidate import consolidate as write

    show(str(write(checkpoint, out)))
