"""Measure models in a serving engine: the same loads on each in turn, as users would send them."""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hybridize.core.artifacts import plain, write_json
from hybridize.core.errors import MachineError
from hybridize.core.gguf import QUANTS
from hybridize.core.quantities import short_bytes
from hybridize.core.shape import ModelShape
from hybridize.engines import Client, Engine, Server, ServeSettings, find_engine, serving
from hybridize.engines.load import Load, Measured, draw_prompts, run_load
from hybridize.exports.ready import make_ready

WRITTEN_AS: dict[str, tuple[str | None, ...]] = {
    "llama.cpp": ("gguf-unpadded", "gguf"),
    "vllm": (None, "stock"),
    "hybridize": (None,),
}
"""Engine -> formats to write a model in, the first with which it starts; None is as it is."""
STEPS_ALL_ROWS = ("hybridize",)
"""Engines that compute as many rows as they may serve, however few there are: started anew for
each number of requests at once."""
WARM_UP = Load(input_tokens=16, output_tokens=8)
KEPT_IN = dict.fromkeys(QUANTS, "float16")
"""Type of weights that is no type to compute in -> the type keys and activations have."""
VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class EngineBenchSettings:
    """The loads every model is put under."""

    engine: str
    """Name in `hybridize.engines.ENGINES`."""
    loads: tuple[Load, ...]
    concurrencies: tuple[int, ...] = (1, 4)
    """Requests at once."""
    repeats: int = 3
    """Measurements of each point; the median of each number is reported."""
    dtype: str = "float32"
    """Of the weights: float32, bfloat16, float16, and for llama.cpp a quantised type."""
    threads: int | None = None
    """Processor threads of the engine; None is its own choice."""
    seed: int = 0
    """Of the random prompts."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to measure."""

    name: str
    folder: Path


@dataclass(frozen=True, kw_only=True)
class EngineRow:
    """One model under one load: medians."""

    input_tokens: int
    output_tokens: int
    concurrency: int
    tokens_per_second: float
    tokens_per_processor_second: float
    """Of the processor time of the engine's processes, the prompts' included: with one thread, what
    a core of its own would give on a machine that others use. 0 where the system does not tell."""
    decode_tokens_per_second: float
    seconds_to_first_token: float
    seconds_between_tokens: float
    peak_memory_bytes: int
    """Most memory of the engine's processes under this load; the largest of the repeats."""
    cache_bytes: int
    """Of keys, values and states of all requests at their end, as the layout needs them."""


@dataclass(frozen=True, kw_only=True)
class EngineModel:
    """One model under all loads."""

    model: str
    layout: str
    parameters: int
    format: str | None
    """What it was written as for the engine; None is the folder as it is."""
    rows: tuple[EngineRow, ...]


@dataclass(frozen=True, kw_only=True)
class EngineBench:
    """What `bench-<engine>.json` holds."""

    engine: str
    version: str | None
    dtype: str
    threads: int | None
    repeats: int
    prefix_caching: bool
    models: tuple[EngineModel, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.engine} {self.version}, {self.dtype}, "
            f"{self.threads or 'its own choice of'} threads, medians of {self.repeats}; "
            "prefix caching off, every prompt different",
            f"{'model':<12}{'load':>10}{'at once':>8}{'tok/s':>9}{'x':>6}{'cpu x':>7}"
            f"{'decode':>9}{'x':>6}{'first s':>9}{'ms/tok':>8}{'peak':>10}{'cache':>10}",
        ]
        for place, base in enumerate(self.models[0].rows):
            lines += [_format_row(one.model, one.rows[place], base) for one in self.models]
        return "\n".join(lines)

    __repr__ = __str__


def run(
    candidates: Sequence[Candidate],
    settings: EngineBenchSettings,
    out: Path | None = None,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> EngineBench:
    """Serve every model and put all under each load in turn, so that drift of speed hits all alike.

    Every server is warmed up first. Writes `out`/bench-<engine>.json if given.

    Raises:
        RecipeError: there is no such engine.
        MachineError: the engine is not installed, ends early, or fails a request.
        ModelError: the engine cannot serve a model.
    """
    engine = find_engine(settings.engine)
    groups: list[tuple[int, ...]] = [settings.concurrencies]
    if engine.name in STEPS_ALL_ROWS:
        groups = [(number,) for number in settings.concurrencies]
    found: dict[str, list[EngineRow]] = {one.name: [] for one in candidates}
    with tempfile.TemporaryDirectory(prefix="hybridize-bench-") as temporary:
        for group in groups:
            with ExitStack() as stack:
                served = [
                    stack.enter_context(
                        _serve(engine, one, settings, max(group), Path(temporary) / one.name)
                    )
                    for one in candidates
                ]
                for load in settings.loads:
                    for concurrency in group:
                        for one in _measure(served, load, concurrency, settings):
                            found[one[0]].append(one[1])
                            say(_format_row(*one, found[candidates[0].name][-1]))
        formats = {one.candidate.name: one.format for one in served}
    bench = EngineBench(
        engine=engine.name,
        version=engine.version(),
        dtype=settings.dtype,
        threads=settings.threads,
        repeats=settings.repeats,
        prefix_caching=False,
        models=tuple(
            _describe(one, formats[one.name], tuple(sorted(found[one.name], key=_order)))
            for one in candidates
        ),
    )
    if out is not None:
        write_json(out / f"bench-{engine.name}.json", plain(bench))
    return bench


@dataclass(frozen=True, kw_only=True)
class _Served:
    candidate: Candidate
    shape: ModelShape
    format: str | None
    server: Server
    client: Client


@contextmanager
def _serve(
    engine: Engine,
    candidate: Candidate,
    settings: EngineBenchSettings,
    max_sequences: int,
    folder: Path,
) -> Iterator[_Served]:
    """Serve a model in the first format with which the engine starts, and warm it up."""
    with ExitStack() as stack:
        for format_ in WRITTEN_AS[engine.name]:
            asked = ServeSettings(
                model=_write(candidate, format_, folder, settings.dtype),
                max_sequences=max_sequences,
                context_tokens=max(load.context_tokens for load in (WARM_UP, *settings.loads)) + 1,
                dtype=KEPT_IN.get(settings.dtype, settings.dtype),
                threads=settings.threads,
                name=candidate.name,
            )
            try:
                server = stack.enter_context(serving(engine, asked))
                break
            except MachineError:
                if format_ == WRITTEN_AS[engine.name][-1]:
                    raise
        client = Client(server.url, model=candidate.name, fields=engine.request_fields)
        shape = ModelShape.read(candidate.folder)
        prompts = draw_prompts(WARM_UP, max_sequences, vocab_size=shape.vocab_size, seed=-1)
        run_load(client, WARM_UP, prompts)
        yield _Served(
            candidate=candidate, shape=shape, format=format_, server=server, client=client
        )


def _write(candidate: Candidate, format_: str | None, folder: Path, dtype: str) -> Path:
    if format_ is None:
        return candidate.folder
    goal = folder / format_
    if not goal.exists():
        make_ready(candidate.folder, goal, format=format_, dtype=dtype)
    return goal


def _measure(
    served: Sequence[_Served], load: Load, concurrency: int, settings: EngineBenchSettings
) -> Iterator[tuple[str, EngineRow]]:
    """Put all models under one load, in turn, and again; yield the name and medians of each."""
    measured: dict[str, list[Measured]] = {one.candidate.name: [] for one in served}
    peaks: dict[str, list[int]] = {one.candidate.name: [] for one in served}
    spent: dict[str, list[float]] = {one.candidate.name: [] for one in served}
    for repeat in range(settings.repeats):
        for one in served:
            one.server.check()
            prompts = draw_prompts(
                load,
                concurrency,
                vocab_size=one.shape.vocab_size,
                seed=settings.seed + repeat,
            )
            one.server.reset_peak_memory()
            before = one.server.processor_seconds()
            measured[one.candidate.name].append(run_load(one.client, load, prompts))
            spent[one.candidate.name].append(one.server.processor_seconds() - before)
            peaks[one.candidate.name].append(one.server.peak_memory())
    for one in served:
        name = one.candidate.name
        held = one.shape.cache_bytes(
            one.shape.layout(),
            load.context_tokens,
            bytes_per_value=VALUE_BYTES[KEPT_IN.get(settings.dtype, settings.dtype)],
        )
        row = _summarise(
            measured[name], load, concurrency, spent[name], max(peaks[name]), held * concurrency
        )
        yield name, row


def _summarise(
    measured: Sequence[Measured],
    load: Load,
    concurrency: int,
    spent: Sequence[float],
    peak: int,
    held: int,
) -> EngineRow:
    processor = statistics.median(spent)

    def median(name: str) -> float:
        return statistics.median(getattr(one, name) for one in measured)

    return EngineRow(
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
        concurrency=concurrency,
        tokens_per_second=median("tokens_per_second"),
        tokens_per_processor_second=(
            concurrency * load.output_tokens / processor if processor else 0.0
        ),
        decode_tokens_per_second=median("decode_tokens_per_second"),
        seconds_to_first_token=median("seconds_to_first_token"),
        seconds_between_tokens=median("seconds_between_tokens"),
        peak_memory_bytes=peak,
        cache_bytes=held,
    )


def _order(row: EngineRow) -> tuple[int, int, int]:
    return row.input_tokens, row.output_tokens, row.concurrency


def _describe(
    candidate: Candidate, format_: str | None, rows: tuple[EngineRow, ...]
) -> EngineModel:
    shape = ModelShape.read(candidate.folder)
    return EngineModel(
        model=candidate.name,
        layout=str(shape.layout()),
        parameters=shape.parameters(),
        format=format_,
        rows=rows,
    )


def _format_row(model: str, row: EngineRow, base: EngineRow) -> str:
    def ratio(name: str) -> float:
        return getattr(row, name) / (getattr(base, name) or 1.0)

    load = Load(input_tokens=row.input_tokens, output_tokens=row.output_tokens)
    return (
        f"{model:<12}{load!s:>10}{row.concurrency:>8}"
        f"{row.tokens_per_second:>9.1f}{ratio('tokens_per_second'):>6.2f}"
        f"{ratio('tokens_per_processor_second'):>7.2f}"
        f"{row.decode_tokens_per_second:>9.1f}{ratio('decode_tokens_per_second'):>6.2f}"
        f"{row.seconds_to_first_token:>9.2f}{1000 * row.seconds_between_tokens:>8.1f}"
        f"{short_bytes(row.peak_memory_bytes):>10}{short_bytes(row.cache_bytes):>10}"
    )
