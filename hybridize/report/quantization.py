"""What quantised files cost, as a table in a report and a card, and in files of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridize.core.artifacts import write_text
from hybridize.report.blocks import Block, Missing, Paragraph
from hybridize.report.run_data import RunData
from hybridize.report.tables import Column, Row, Table, to_csv, to_markdown

NAME = "quantize"
_WEIGHTS = (
    Column("type", "type"),
    Column("bytes", "size", "bytes"),
    Column("share", "of unquantised", "ratio"),
    Column("kl", "KL to unquantised", "number", error="kl_error", unit="nats per token"),
    Column("top1_share", "same top token"),
    Column("top1", "same top token", "number", error="top1_error", is_shown=False),
    Column("tokens", "places compared", "count", is_shown=False),
)
_SERVED = (
    Column("accuracy", "score", "number", error="standard_error"),
    Column("difference", "difference", "number", error="difference_error"),
    Column("p_value", "p (McNemar)", "number", is_shown=False),
    Column("num_problems", "problems", "count", is_shown=False),
    Column("decode_tokens_per_second", "decode", "number", unit="tokens/s"),
    Column("speedup", "against unquantised", "ratio"),
    Column("tokens_per_processor_second", "per processor second", "number", is_shown=False),
    Column("deviation", "llama.cpp differs by", "number", is_shown=False, unit="nats"),
)


def quantization_table(found: Mapping[str, Any]) -> Table:
    """List the unquantised model and each type, KL before scores.

    Args:
        found: what `quantize.json` holds.
    """
    base = found["rows"][0]
    rows: tuple[Row, ...] = tuple(
        {
            **{column.key: row.get(column.key) for column in (*_WEIGHTS, *_SERVED)},
            **{
                column.error: row.get(column.error)
                for column in (*_WEIGHTS, *_SERVED)
                if column.error
            },
            "top1_share": f"{100 * row['top1']:.2f} %",
            "share": row["bytes"] / base["bytes"],
            "speedup": _divide(row, base, "decode_tokens_per_second"),
        }
        for row in found["rows"]
    )
    columns = (*_WEIGHTS, *(() if found["engine"] is None else _SERVED))
    return Table(NAME, f"{found['model']} in fewer bits", columns, rows)


def describe_quantization(found: Mapping[str, Any]) -> str:
    """Say how to read the table, and what was not measured."""
    asked = found["settings"]["served"]
    places = next((row["tokens"] for row in found["rows"] if row.get("tokens")), 0)
    words = (
        "KL first: it moves before scores do. It is that of the whole next-token distribution, "
        f"KL(unquantised || quantised) at {places:,} places of held-out text, of the rounded "
        "weights alone. The unquantised file is "
        f"{found['dtype']}. "
    )
    if found["engine"] is None:
        return f"{words}Scores and speed are not measured: {found['not_served']}"
    load = asked["load"]
    return (
        f"{words}Scores and speed are those of llama.cpp ({found['engine']}), which rounds "
        f"activations too: suite {asked['suite']}, {asked['problems']} problems of each kind, the "
        "difference that of each problem to the unquantised file; decoding of one sequence, "
        f"{load['output_tokens']} tokens after {load['input_tokens']}, median of "
        f"{asked['repeats']}, files in turn."
    )


def quantization(run: RunData) -> tuple[Block, ...]:
    """Show the table of a run, or what would make it."""
    if run.quantised is None:
        return (
            Missing(
                "Nothing has been quantised (quantize: {types: [q8_0, q4_0]}, or hybridize "
                "quantize MODEL --out RUN/quantize)."
            ),
        )
    return Paragraph(describe_quantization(run.quantised)), quantization_table(run.quantised)


def write_quantization(found: Mapping[str, Any], out: Path) -> list[Path]:
    """Write quantize.md and quantize.csv into `out`; return the files.

    Args:
        found: what `quantize.json` holds.
        out: folder.
    """
    table = quantization_table(found)
    texts = {
        f"{NAME}.md": f"{describe_quantization(found)}\n\n{to_markdown(table)}\n",
        f"{NAME}.csv": to_csv(table),
    }
    for file, text in texts.items():
        write_text(out / file, text)
    return [out / file for file in texts]


def _divide(row: Mapping[str, Any], base: Mapping[str, Any], key: str) -> float | None:
    return float(row[key] / base[key]) if base.get(key) and row.get(key) else None
