"""Quantise a model for llama.cpp, and measure what that costs: size, KL, scores, speed.

KL comes first: it moves before scores do. It is that of our own class with the values that the
file's blocks hold, so that it needs no engine and is of the rounded weights alone; scores and speed
are llama.cpp's, which rounds activations as well.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hybridize import tasks
from hybridize.core.artifacts import plain, read_json, write_json
from hybridize.core.catalog import did_you_mean
from hybridize.core.errors import ModelError, RecipeError
from hybridize.core.exports import check_fit, find_target
from hybridize.core.gguf import MADE_QUANTS, QUANTS
from hybridize.core.quantities import short_bytes
from hybridize.core.whole_folder import whole_folder
from hybridize.engines import find_engine
from hybridize.engines.llama_quantize import need_quantizer
from hybridize.evaluation.rounding import Row, measure_rounding
from hybridize.evaluation.served import ServedSettings, serve_all
from hybridize.evaluation.subjects import describe_versions
from hybridize.exports import gguf
from hybridize.exports.expected import make_expected, round_weights
from hybridize.exports.exported import Exported, Origin, write_report
from hybridize.exports.folder import write_companions
from hybridize.exports.gguf_back import count_types, read_back
from hybridize.exports.prompts import make_prompts
from hybridize.exports.verify import Check, ask_engine, why_unchecked
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.model import Model
from hybridize.training.data import TokenSource
from hybridize.training.objectives import rows_to_measure

QUALITY, TABLE = "quality.json", "quantize.json"
FORMAT, ENGINE = "gguf", "llama.cpp"
UNQUANTISED = "unquantised"
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """Which types are made, and on how much they are measured."""

    types: Sequence[str] = ("q8_0", "q4_0")
    """Names in `hybridize.core.gguf.QUANTS`."""
    tokens: int = 32_768
    """Held-out tokens, prompts included, that KL is measured on."""
    served: ServedSettings = field(default_factory=ServedSettings)
    """What llama.cpp is asked."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One quantised file, held against the model it was made from; in its folder's quality.json."""

    type: str
    bytes: int
    """Of the file."""
    tensors: Mapping[str, int]
    """llama.cpp's name of a type -> how many tensors have it."""
    kl: float
    """KL(unquantised || quantised), nats per token, of the weights' rounding alone."""
    kl_error: float | None
    """Standard error, over documents."""
    top1: float
    """Share of places where both find the same token most likely."""
    top1_error: float | None
    tokens: int
    """Places compared."""
    documents: int
    deviation: float | None
    """Greatest difference of a log-probability in llama.cpp from our class with the same weights;
    None where llama.cpp was not asked."""
    unchecked: str | None
    """Why it was not asked."""


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """What `quantize.json` holds: a row a type, the unquantised model first."""

    model: str
    layout: str
    parameters: int
    dtype: str
    """Type of the weights of the unquantised model."""
    rows: tuple[Mapping[str, Any], ...]
    """Fields of `Quality` and, where llama.cpp was asked, of `Served`."""
    settings: Mapping[str, Any]
    """Those of `QuantizeSettings`."""
    engine: str | None
    """Version of llama.cpp; None where nothing was served."""
    not_served: str | None
    """Why scores and speed are not measured."""
    versions: Mapping[str, str]

    def __str__(self) -> str:
        lines = [
            f"{self.model}  {self.layout}",
            f"{'type':<12}{'size':>10}  {'KL, nats per token':<22}{'same top':>9}  "
            f"{'score':<16}{'difference':<17}tok/s",
        ]
        lines += [_tell_row(row) for row in self.rows]
        if self.not_served is not None:
            lines.append(f"scores and speed are not measured: {self.not_served}")
        return "\n".join(lines)

    __repr__ = __str__


def check_types(types: Sequence[str]) -> None:
    """Check that all types are known, and what makes them is installed.

    Raises:
        RecipeError: one is not known, or named twice.
        MachineError: a package or program is missing; says which.
    """
    for place, name in enumerate(types):
        if name not in QUANTS:
            near = did_you_mean(name, QUANTS)
            raise RecipeError(f"{name!r} is not a type. {near}Known: {', '.join(QUANTS)}.")
        if name in types[:place]:
            raise RecipeError(f"the type {name} is named twice. Remove one of them.")
        if name in MADE_QUANTS:
            need_quantizer(name)
    gguf.import_gguf()


def run(
    model: Model,
    settings: QuantizeSettings,
    heldout: TokenSource,
    out: Path,
    *,
    origin: Origin | None = None,
    say: Say = lambda _: None,
) -> Quantised:
    """Write `out`/<type> for each type, and `out`/quantize.json; raises like `make` and `compare`.

    Raises:
        RecipeError: a type is not known, or named twice.
    """
    check_types(settings.types)
    for name in settings.types:
        say(tell(make(model, name, settings, heldout, out / name, origin=origin)))
    return compare(model, settings, out, say=say)


def make(
    model: Model,
    name: str,
    settings: QuantizeSettings,
    heldout: TokenSource,
    out: Path,
    *,
    origin: Origin | None = None,
) -> Quality:
    """Write a model in one type into the folder `out`, which appears whole and measured.

    Raises:
        ModelError: llama.cpp cannot hold the model, or answers otherwise than our class does with
            the same values.
        MachineError: a package, a program or room is missing.
    """
    reasons = check_fit(model.network.config.to_dict(), FORMAT)
    if reasons:
        raise ModelError(f"model {model.name} cannot be quantised as GGUF: {'; '.join(reasons)}.")
    with whole_folder(out) as fresh:
        gguf.write(model, fresh, name)
        write_companions(model, fresh, origin.texts if origin else {})
        file = fresh / gguf.FILE
        rounded = read_back(model.network, file)
        check = _ask(model, rounded, fresh)
        rounding = measure_rounding(
            round_weights(model.network, None), rounded, _read(heldout, settings.tokens)
        )
        checks = (check,) if isinstance(check, Check) else ()
        unchecked = {} if isinstance(check, Check) else {ENGINE: check}
        quality = Quality(
            type=name,
            bytes=file.stat().st_size,
            tensors=count_types(file),
            **asdict(rounding),
            deviation=checks[0].deviation if checks else None,
            unchecked=unchecked.get(ENGINE),
        )
        target = find_target(model.network.config.to_dict(), FORMAT)
        assert target is not None, "check_fit lets no such model pass"
        exported = Exported(
            folder=out,
            format=FORMAT,
            target=target,
            dtype=name,
            checks=checks,
            unchecked=unchecked,
        )
        write_report(model, exported, fresh, origin.card if origin else None)
        write_json(fresh / QUALITY, quality)
    return quality


def compare(
    model: Model, settings: QuantizeSettings, out: Path, *, say: Say = lambda _: None
) -> Quantised:
    """Ask llama.cpp with each type in `out`, and with the unquantised model; write the table.

    Where llama.cpp is not installed, or does not run, the table says why and has what was measured
    without it.

    Raises:
        RecipeError: the suite is not known, or asks nothing.
    """
    found = [Quality(**read_json(out / name / QUALITY)) for name in settings.types]
    # Under one name, so that what a killed process leaves is replaced.
    whole = out / f".{UNQUANTISED}"
    with whole_folder(whole) as fresh:
        gguf.write(model, fresh, None)
    try:
        folders = {UNQUANTISED: whole, **{name: out / name for name in settings.types}}
        served = serve_all(folders, model.tokenizer, settings.served, say=say)
        size = (whole / gguf.FILE).stat().st_size
    finally:
        shutil.rmtree(whole)
    why = served if isinstance(served, str) else None
    answered = {} if isinstance(served, str) else served
    unchanged = {"type": UNQUANTISED, "bytes": size, "kl": 0.0, "top1": 1.0}
    table = Quantised(
        model=model.name,
        layout=str(model.layout),
        parameters=model.num_parameters,
        dtype=str(model.network.dtype).removeprefix("torch."),
        rows=tuple(
            {**row, **(asdict(answered[row["type"]]) if answered else {})}
            for row in (unchanged, *map(plain, found))
        ),
        settings=plain(settings),
        engine=find_engine(ENGINE).version() if answered else None,
        not_served=why,
        versions=describe_versions("gguf"),
    )
    write_json(out / TABLE, table)
    return table


def _tell_row(row: Mapping[str, Any]) -> str:
    kl = _with_error(row["kl"], row.get("kl_error"), ".2e", ".0e")
    line = f"{row['type']:<12}{short_bytes(row['bytes']):>10}  {kl:<22}{row['top1']:>9.2%}  "
    if "accuracy" in row:
        line += f"{_with_error(row['accuracy'], row['standard_error'], '.3f', '.3f'):<16}"
        line += f"{_with_error(row['difference'], row['difference_error'], '+.3f', '.3f'):<17}"
        line += f"{row['decode_tokens_per_second']:.0f}"
    return line.rstrip()


def _with_error(value: float | None, error: float | None, form: str, error_form: str) -> str:
    if value is None:
        return ""
    return format(value, form) + ("" if error is None else f" ± {format(error, error_form)}")


def tell(quality: Quality) -> str:
    """Say in a line what a type costs."""
    error = "" if quality.kl_error is None else f" ± {quality.kl_error:.1e}"
    return (
        f"{quality.type}: {short_bytes(quality.bytes)}, KL {quality.kl:.2e}{error} nats per token, "
        f"the same top token at {quality.top1:.2%} of {quality.tokens} places"
    )


def _ask(model: Model, rounded: HybridForCausalLM, folder: Path) -> Check | str:
    """Hold llama.cpp's answers against our class with the same values; return why it was not asked.

    Raises:
        ModelError: it answers otherwise.
    """
    texts = [tasks.make(kind, seed=3, index=0, split="heldout").prompt_text for kind in tasks.KINDS]
    reason = why_unchecked(ENGINE, folder)
    if reason is not None:
        return reason
    expected = make_expected(rounded, make_prompts(model, texts))
    check = ask_engine(ENGINE, folder, expected, is_rounded=True)
    if isinstance(check, Check) and not check.passed:
        raise ModelError(
            f"model {model.name} answers otherwise once quantised: {check}. Nothing was written; "
            "take a finer type, and report it with the recipe."
        )
    return check


def _read(heldout: TokenSource, tokens: int) -> Iterator[Row]:
    """Yield the held-out rows of so many tokens."""
    return (heldout.row(index) for index in range(rows_to_measure(heldout, tokens)))
