"""A table of numbers with units, and its three forms: HTML, Markdown and CSV."""

import csv
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hybridize.report import units

Cell = str | int | float | bool | None
Row = Mapping[str, Cell]
Kind = Literal["text", "strip", "count", "number", "tokens", "bytes", "seconds", "ratio"]

DENSE_COLUMNS = 7
"""A table with more columns than this is set in smaller type."""

_FORMATS: dict[str, Callable[[float], str]] = {
    "count": units.count_text,
    "number": units.three_digits,
    "tokens": units.tokens_text,
    "bytes": units.bytes_text,
    "seconds": units.seconds_text,
    "ratio": units.ratio_text,
}


@dataclass(frozen=True)
class Column:
    """One column: where its values are, what stands above them, how they are written."""

    key: str
    """Key of the row, and heading in the CSV; carries the unit."""
    heading: str
    kind: Kind = "text"
    error: str | None = None
    """Key of the standard error, printed as `value ± error`."""
    unit: str = ""
    """Unit printed in the heading."""
    is_shown: bool = True
    """Whether the page has it too, not the CSV alone."""


@dataclass(frozen=True)
class Table:
    """Rows under columns, with a name that is also the name of its CSV file."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def shown(self) -> tuple[Column, ...]:
        """The columns of the page."""
        return tuple(column for column in self.columns if column.is_shown)

    def csv_keys(self) -> tuple[str, ...]:
        """List the columns of the CSV: each value, then its standard error."""
        keys: list[str] = []
        for column in self.columns:
            keys += [column.key] if column.error is None else [column.key, column.error]
        return tuple(keys)


def cell_text(row: Row, column: Column) -> str:
    """Write one cell as the page shows it."""
    value = row.get(column.key)
    if value is None:
        return units.MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if column.kind in ("text", "strip"):
        return f"{value:,}" if isinstance(value, int) else units.three_digits(value)
    text = _FORMATS[column.kind](value)
    error = row.get(column.error) if column.error else None
    if isinstance(error, int | float) and not isinstance(error, bool):
        digits = f"{error:.2f}" if column.kind == "ratio" else units.error_text(error, value)
        text += f" ± {digits}"
    return text


def to_csv(table: Table) -> str:
    """Write all rows at full precision; a missing value is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = table.csv_keys()
    writer.writerow(keys)
    writer.writerows(
        [["" if row.get(key) is None else row.get(key) for key in keys] for row in table.rows]
    )
    return out.getvalue()


def to_html(table: Table) -> str:
    """Write a table element with a caption, column scopes and row headings, in a box that scrolls.

    The box takes the focus, so that it can be scrolled by keyboard.
    """
    head = "".join(
        f'<th scope="col"{_align(column)}>{html.escape(_heading(column))}</th>'
        for column in table.shown
    )
    body = "".join(f"<tr>{_html_cells(table.shown, row)}</tr>" for row in table.rows)
    dense = ' class="dense"' if len(table.shown) > DENSE_COLUMNS else ""
    title = html.escape(table.title)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{title}">'
        f'<table{dense} id="table-{table.name}">'
        f"<caption><span>{title}</span></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def to_markdown(table: Table) -> str:
    """Write a pipe table."""
    lines = [
        "| " + " | ".join(_heading(column) for column in table.shown) + " |",
        "|" + "|".join("---:" if _is_number(column) else "---" for column in table.shown) + "|",
    ]
    for row in table.rows:
        cells = (_markdown_cell(row, column) for column in table.shown)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _markdown_cell(row: Row, column: Column) -> str:
    text = cell_text(row, column).replace("|", "\\|")
    return f"`{text}`" if column.kind == "strip" and text != units.MISSING else text


def _html_cells(columns: Sequence[Column], row: Row) -> str:
    cells = []
    for position, column in enumerate(columns):
        text = html.escape(cell_text(row, column))
        if column.kind == "strip":
            text = f"<code>{text}</code>"
        tag = 'th scope="row"' if position == 0 else "td"
        cells.append(f"<{tag}{_align(column)}>{text}</{tag[:2]}>")
    return "".join(cells)


def _heading(column: Column) -> str:
    return f"{column.heading} ({column.unit})" if column.unit else column.heading


def _is_number(column: Column) -> bool:
    return column.kind not in ("text", "strip")


def _align(column: Column) -> str:
    return ' class="number"' if _is_number(column) else ""
