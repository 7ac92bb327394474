"""The command export: write a model in the layout of another project."""

from pathlib import Path
from typing import Annotated

import typer

from hybridize.cli.options import ModelArgument, show


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(epilog="Example: hybridize export out/h2 out/h2-apriel --format apriel-h1")(export)


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
