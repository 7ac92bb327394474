"""What was measured in a serving engine, as a table and a figure beside its JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridize.core.artifacts import write_text
from hybridize.core.quantities import format_tokens
from hybridize.report.figures import chart, svg
from hybridize.report.figures.serving import serving_speed
from hybridize.report.tables import Column, Row, Table, to_csv, to_markdown

_COLUMNS = (
    Column("model", "model"),
    Column("layout", "layout", "strip"),
    Column("load", "prompt:answer"),
    Column("concurrency", "at once", "count"),
    Column("tokens_per_second", "tokens/s", "number"),
    Column("speedup", "against the first", "ratio"),
    Column("tokens_per_processor_second", "per processor second", "number", unit="tokens"),
    Column("processor_speedup", "against the first", "ratio"),
    Column("decode_tokens_per_second", "while all decode", "number", unit="tokens/s"),
    Column("decode_speedup", "against the first", "ratio"),
    Column("ms_to_first_token", "first token", "number", unit="ms"),
    Column("ms_between_tokens", "between tokens", "number", unit="ms"),
    Column("peak_memory_bytes", "peak memory", "bytes"),
    Column("cache_bytes", "cache and states", "bytes"),
)


def write_serving(bench: Mapping[str, Any], out: Path) -> list[Path]:
    """Write bench-<engine>.md, .csv and .svg into `out`; return the files.

    Args:
        bench: what `bench-<engine>.json` holds.
        out: folder.
    """
    name = f"bench-{bench['engine']}"
    table = Table(name, f"Speed in {bench['engine']}", _COLUMNS, tuple(list_rows(bench)))
    drawn = svg.standalone(serving_speed(table.rows, chart.WIDE))
    texts = {
        f"{name}.md": f"{describe_load(bench)}\n\n{to_markdown(table)}\n",
        f"{name}.csv": to_csv(table),
        f"{name}.svg": drawn,
    }
    for file, text in texts.items():
        write_text(out / file, text)
    return [out / file for file in texts]


def describe_load(bench: Mapping[str, Any]) -> str:
    """Say in a sentence how it was measured."""
    threads = f"{bench['threads']} threads" if bench["threads"] else "threads as the engine chooses"
    repeats = bench["repeats"]
    often = f"medians of {repeats}" if repeats > 1 else "measured once"
    return (
        f"{bench['engine']} {bench['version']}, {bench['dtype']}, {threads}; {often}, models in "
        "turn, prefix caching off and every prompt different."
    )


def list_rows(bench: Mapping[str, Any]) -> list[Row]:
    """Return a row for each model under each load; ratios are to the first model."""
    first = bench["models"][0]["rows"]
    rows: list[Row] = []
    for place, model in enumerate(bench["models"]):
        for row, base in zip(model["rows"], first, strict=True):
            tokens = (format_tokens(row[f"{part}_tokens"]) for part in ("input", "output"))
            rows.append(
                {
                    **row,
                    "model": model["model"],
                    "layout": model["layout"],
                    "load": ":".join(tokens),
                    "is_teacher": place == 0,
                    "is_headline": place == len(bench["models"]) - 1,
                    "ms_to_first_token": 1000 * row["seconds_to_first_token"],
                    "ms_between_tokens": 1000 * row["seconds_between_tokens"],
                    "speedup": _divide(row, base, "tokens_per_second"),
                    "processor_speedup": _divide(row, base, "tokens_per_processor_second"),
                    "decode_speedup": _divide(row, base, "decode_tokens_per_second"),
                }
            )
    return rows


def _divide(row: Mapping[str, Any], base: Mapping[str, Any], key: str) -> float | None:
    return float(row[key] / base[key]) if base.get(key) else None
