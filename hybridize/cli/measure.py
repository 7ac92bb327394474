"""Commands that compare models in one table: eval and bench."""

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

ENGINE, SHAPE = "In a serving engine", "Without a model"
OutFolder = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", rich_help_panel=WHERE, help="Folder for JSON files."),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("eval", epilog="Example: hybridize eval shipped out/h2 --limit 20")(evaluate)
    app.command(epilog="Example: hybridize bench shipped out/h2 --prompt-tokens 512,2048")(bench)


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


def bench(  # noqa: PLR0913  a load has this many sides
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="Model folders, hub ids, or `shipped`."),
    ] = None,
    prompt_tokens: Annotated[
        str, typer.Option(metavar="LIST", help="Lengths of the prompt, without --engine.")
    ] = "512,2048",
    output_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tokens generated after each prompt.")
    ] = 64,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Sequences at once.")] = 1,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=ENGINE,
            help="Measure in a serving engine, over HTTP; see `hybridize ls engines`.",
        ),
    ] = None,
    loads: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            rich_help_panel=ENGINE,
            help="Tokens of prompt:answer, or `paper`: 1:16k, 1k:8k and 8k:16k.",
        ),
    ] = "1:256,1k:128",
    concurrency: Annotated[
        str, typer.Option(metavar="LIST", rich_help_panel=ENGINE, help="Requests at once.")
    ] = "1,4",
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Measurements of each point: medians.")
    ] = 3,
    dtype: Annotated[
        str, typer.Option(metavar="NAME", rich_help_panel=ENGINE, help="Type of the weights.")
    ] = "float32",
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=SHAPE,
            help="Random weights: a name of `hybridize ls shapes`, or 20x1024x16x4x2816x4096.",
        ),
    ] = None,
    converted: Annotated[
        str, typer.Option(metavar="LIST", rich_help_panel=SHAPE, help="Percent of its layers.")
    ] = "0,50,60,80",
    mixer: Annotated[
        str, typer.Option(metavar="NAME", rich_help_panel=SHAPE, help="Mixer of those layers.")
    ] = "mamba2",
    out: OutFolder = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time models side by side: in this process, or in a serving engine as users would ask it."""
    from hybridize.cli import benches
    from hybridize.cli.watch import prepare_machine

    prepare_machine()
    with benches.make_models(models or [], shape, converted, mixer, dtype) as found:
        if engine is None:
            measured = benches.measure_here(
                found, prompt_tokens, benches.Here(output_tokens, batch, repeats, device), out
            )
        else:
            measured = benches.measure_engine(
                found, benches.Asked(engine, loads, concurrency, repeats, dtype), out
            )
    if as_json:
        show_json(measured)
    else:
        show(str(measured))
