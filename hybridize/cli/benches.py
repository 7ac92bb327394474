"""The command bench: models given or made of random weights, timed here or in an engine."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybridize.cli.options import WHERE, DeviceOption, JsonOption, name_model, say, show, show_json
from hybridize.cli.serve import find_model
from hybridize.core.errors import RecipeError

if TYPE_CHECKING:
    from hybridize.engines.load import Load
    from hybridize.stages.bench import Bench
    from hybridize.stages.bench_engine import Candidate, EngineBench

ENGINE, SHAPE = "In a serving engine", "Without a model"

BenchedArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL...", help="Model folders, hub ids, or `shipped`."),
]
PromptTokensOption = Annotated[
    str, typer.Option(metavar="LIST", help="Lengths of the prompt, without --engine.")
]
OutputTokensOption = Annotated[
    int, typer.Option(metavar="N", min=1, help="Tokens generated after each prompt.")
]
BatchOption = Annotated[int, typer.Option(metavar="N", min=1, help="Sequences at once.")]
EngineOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=ENGINE,
        help="Measure in a serving engine, over HTTP; see `hybridize ls engines`.",
    ),
]
LoadsOption = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        rich_help_panel=ENGINE,
        help="Tokens of prompt:answer, or `paper`: 1:16k, 1k:8k and 8k:16k.",
    ),
]
ConcurrencyOption = Annotated[
    str, typer.Option(metavar="LIST", rich_help_panel=ENGINE, help="Requests at once.")
]
RepeatsOption = Annotated[
    int, typer.Option(metavar="N", min=1, help="Measurements of each point: medians.")
]
DtypeOption = Annotated[
    str, typer.Option(metavar="NAME", rich_help_panel=ENGINE, help="Type of the weights.")
]
ShapeOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=SHAPE,
        help="Random weights: a name of `hybridize ls shapes`, or 20x1024x16x4x2816x4096.",
    ),
]
ConvertedOption = Annotated[
    str, typer.Option(metavar="LIST", rich_help_panel=SHAPE, help="Percent of its layers.")
]
MixerOption = Annotated[
    str, typer.Option(metavar="NAME", rich_help_panel=SHAPE, help="Mixer of those layers.")
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", rich_help_panel=WHERE, help="Folder for the files."),
]


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(epilog="Example: hybridize bench shipped out/h2 --prompt-tokens 512,2048")(bench)


def bench(  # noqa: PLR0913  a load has this many sides
    models: BenchedArgument = None,
    prompt_tokens: PromptTokensOption = "512,2048",
    output_tokens: OutputTokensOption = 64,
    batch: BatchOption = 1,
    engine: EngineOption = None,
    loads: LoadsOption = "1:256,1k:128",
    concurrency: ConcurrencyOption = "1,4",
    repeats: RepeatsOption = 3,
    dtype: DtypeOption = "float32",
    shape: ShapeOption = None,
    converted: ConvertedOption = "0,50,60,80",
    mixer: MixerOption = "mamba2",
    out: OutOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time models side by side: in this process, or in a serving engine as users would ask it."""
    from hybridize.cli.watch import prepare_machine

    prepare_machine()
    with make_models(models or [], shape, converted, mixer, dtype) as found:
        measured: Bench | EngineBench
        if engine is None:
            measured = measure_here(
                found, prompt_tokens, Here(output_tokens, batch, repeats, device), out
            )
        else:
            measured = measure_engine(found, Asked(engine, loads, concurrency, repeats, dtype), out)
    if as_json:
        show_json(measured)
    else:
        show(str(measured))


@dataclass(frozen=True)
class Here:
    """How models are measured in this process."""

    output_tokens: int
    batch: int
    repeats: int
    device: str | None


@dataclass(frozen=True)
class Asked:
    """How models are measured in an engine, as the command line says it."""

    engine: str
    loads: str
    concurrency: str
    repeats: int
    dtype: str


@contextmanager
def make_models(
    models: Sequence[str], shape: str | None, converted: str, mixer: str, dtype: str
) -> Iterator[list["Candidate"]]:
    """Yield the models to measure: those named, then those of a shape, which are removed after.

    Raises:
        RecipeError: there is none, or the shape, a share or the mixer does not exist.
    """
    from hybridize.stages.bench_engine import Candidate

    found = [Candidate(name=name_model(model), folder=find_model(model)) for model in models]
    if shape is None and not found:
        raise RecipeError("bench: there is nothing to measure. Name a model, or give --shape.")
    with tempfile.TemporaryDirectory(prefix="hybridize-shape-") as temporary:
        if shape is not None:
            found += _make_random(shape, converted, mixer, dtype, Path(temporary))
        yield _tell_apart(found)


def _make_random(
    shape: str, converted: str, mixer: str, dtype: str, folder: Path
) -> Iterator["Candidate"]:
    from hybridize.core.quantities import parse_share
    from hybridize.core.shapes import find_shape, spread_layout
    from hybridize.models.random_weights import make_random
    from hybridize.stages.bench_engine import KEPT_IN, Candidate

    sizes = find_shape(shape)
    for text in map(str.strip, converted.split(",")):
        share = parse_share(text if "%" in text or "." in text else f"{text}%")
        layout = spread_layout(sizes.num_layers, share, mixer)
        name = f"h{len(layout.converted)}" if layout.converted else "teacher"
        # Rounding is cheap from bfloat16; a type that only files have is rounded to in the end.
        model = make_random(sizes, layout, name=name, dtype=KEPT_IN.get(dtype, dtype))
        say(f"{model!r}, random weights")
        yield Candidate(name=name, folder=model.save(folder / name))


def _tell_apart(found: Sequence["Candidate"]) -> list["Candidate"]:
    """Number models of the same name."""
    from dataclasses import replace

    names = [one.name for one in found]
    return [
        one
        if names.count(one.name) == 1
        else replace(one, name=f"{one.name}-{names[:place].count(one.name) + 1}")
        for place, one in enumerate(found)
    ]


def measure_here(
    models: Sequence["Candidate"], prompt_tokens: str, how: Here, out: Path | None
) -> "Bench":
    """Time prefill and decoding in this process."""
    from hybridize import api
    from hybridize.core.quantities import parse_tokens

    return api.bench(
        [api.load_model(one.folder, name=one.name, device=how.device) for one in models],
        context_tokens=[parse_tokens(text) for text in prompt_tokens.split(",")],
        output_tokens=how.output_tokens,
        batch=how.batch,
        repeats=how.repeats,
        out=out,
    )


def measure_engine(models: Sequence["Candidate"], asked: Asked, out: Path | None) -> "EngineBench":
    """Put models under loads in a serving engine; JSON, table and figure go to `out`."""
    from hybridize.core.artifacts import plain
    from hybridize.core.quantities import parse_tokens
    from hybridize.core.settings import read_settings
    from hybridize.report.serving import write_serving
    from hybridize.stages import bench_engine

    settings = bench_engine.EngineBenchSettings(
        engine=asked.engine,
        loads=read_loads(asked.loads),
        concurrencies=tuple(sorted(map(parse_tokens, asked.concurrency.split(",")))),
        repeats=asked.repeats,
        dtype=asked.dtype,
        threads=read_settings().threads,
    )
    measured = bench_engine.run(models, settings, out, say=say)
    if out is not None:
        write_serving(plain(measured), out)
    return measured


def read_loads(text: str) -> tuple["Load", ...]:
    """Read a list such as `1:256,1k:8k`; `paper` stands for the three loads of the paper."""
    from hybridize.engines.load import PAPER_LOADS, parse_load

    loads: list[Load] = []
    for part in text.split(","):
        loads += PAPER_LOADS if part.strip() == "paper" else [parse_load(part)]
    return tuple(loads)
