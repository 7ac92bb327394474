"""Commands that write a model anew: export (for another project), consolidate (a checkpoint)."""

from pathlib import Path
from typing import Annotated

import typer

from hybridize.cli.options import ModelArgument, say, show


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(epilog="Example: hybridize export runs/tiny/merge/model out/tiny")(export)
    app.command(
        epilog="Example: hybridize consolidate runs/tiny/stages/01-h6/checkpoint out/h6-so-far"
    )(consolidate)


def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="See `hybridize ls exports`; stock where that fits, else hybridize.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Type of the weights; the model's where left out."),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify/--no-verify", help="Ask what was written before it gets its name."),
    ] = True,
) -> None:
    """Write a model for other programs, with tokenizer, recipe and card, exactly or not at all."""
    from hybridize import api

    made = api.export(model, out, format=format_name, dtype=dtype, verify=verify)
    for line in str(made).splitlines():
        say(line)
    show(str(made.folder))


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
