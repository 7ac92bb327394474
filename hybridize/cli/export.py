"""Commands that write a model anew: export (for other programs), quantize, consolidate."""

from pathlib import Path
from typing import Annotated

import typer

from hybridize.cli.options import (
    WHERE,
    DeviceOption,
    JsonOption,
    ModelArgument,
    SetOption,
    say,
    show,
    show_json,
)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(epilog="Example: hybridize export runs/tiny/merge/model out/tiny")(export)
    app.command(
        epilog="Example: hybridize quantize runs/tiny/merge/model --types q8_0,q4_0 --out out/small"
    )(quantize)
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


def quantize(
    model: ModelArgument,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", rich_help_panel=WHERE, help="Gets a folder for each type."),
    ],
    types: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="q8_0, q5_1, q5_0, q4_1, q4_0; with llama-quantize also q6_k, q5_k_m, q5_k_s, "
            "q4_k_m, q4_k_s, q3_k_m, q2_k.",
        ),
    ] = "q8_0,q4_0",
    overrides: SetOption = [],  # noqa: B006  typer copies it
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model in fewer bits for llama.cpp, and measure what that costs.

    KL is measured on held-out problems, or on the text that --set data.heldout names; scores and
    speed in llama.cpp, where it is installed.
    """
    from hybridize import api
    from hybridize.cli.watch import prepare_machine
    from hybridize.core.recipe import Recipe
    from hybridize.pipeline.quantize import find_origin, quantize_with

    prepare_machine()
    asked = {
        "version": 1,
        "teacher": {"model": "shipped"},
        "data": {"sequence_length": 1024},
        "quantize": {"types": [name.strip() for name in types.split(",")]},
    }
    recipe = Recipe.from_values(asked, name="quantize", overrides=overrides)
    loaded = api.load_model(model, dtype=None, device=device)
    made = quantize_with(recipe, loaded, out, origin=find_origin(model), say=say)
    if as_json:
        show_json(made)
    else:
        show(str(made))


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
