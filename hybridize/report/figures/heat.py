"""Figures of the suites: maps of recall and of errors, curves of agreement with the teacher."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybridize.report import units
from hybridize.report.figures import chart, svg
from hybridize.report.tables import Row

CELL_HEIGHT, LOW_CELL_HEIGHT = 34.0, 20.0
FEW_LINES = 8
"""With more lines than this, cells are low."""
BRIGHT = 0.55
"""A cell darker than this share has its number in the colour of the paper."""


@dataclass(frozen=True)
class _Grid:
    """What a map has on its sides: keys of the rows, names of the axes, how values are written."""

    x: str
    y: str
    value: str
    x_name: str
    y_name: str
    y_form: Callable[[float], str]


def heat_map(rows: Sequence[Row], width: int) -> str:
    """Draw a cell per length and depth, darker where more answers are right, the share in it.

    Rows: model, prompt_length (tokens), depth (0..1), accuracy, num_problems.
    """
    grid = _Grid(
        x="prompt_length",
        y="depth",
        value="accuracy",
        x_name="prompt (tokens)",
        y_name="depth of the facts in the prompt, from its beginning",
        y_form=lambda depth: f"{100 * depth:.0f} %",
    )
    title = f"Facts found by {rows[0]['model']} by length and depth"
    return _draw(rows, width, grid, "recall", title, highest=1.0)


def error_map(rows: Sequence[Row], width: int) -> str:
    """Draw a cell per layer and position, darker where hidden states are farther off.

    Rows: model, layer, position (tokens, upper end of the group), error (relative).
    """
    grid = _Grid(
        x="position",
        y="layer",
        value="error",
        x_name="position (tokens, below)",
        y_name="layer; distance of the hidden states after it from the teacher's, over their size",
        y_form=lambda layer: f"{layer:.0f}",
    )
    title = f"Distance of {rows[0]['model']} from the teacher by layer and position"
    highest = max(_number(row, "error") for row in rows)
    return _draw(rows, width, grid, "layer-errors", title, highest=highest or 1.0)


def _draw(
    rows: Sequence[Row], width: int, grid: _Grid, name: str, title: str, *, highest: float
) -> str:
    """Draw the cells; one with the value `highest` is the darkest."""
    columns = sorted({_number(row, grid.x) for row in rows})
    lines = sorted({_number(row, grid.y) for row in rows})
    left, top = 62.0, 28.0
    height = CELL_HEIGHT if len(lines) <= FEW_LINES else LOW_CELL_HEIGHT
    cell = (width - left - 12) / len(columns)
    parts = [svg.text(left, 14, grid.y_name, "name")]
    for place, line in enumerate(lines):
        y = top + (place + 0.5) * height + 4
        parts.append(svg.text(left - 8, y, grid.y_form(line), "tick", "end"))
    for row in rows:
        x = left + columns.index(_number(row, grid.x)) * cell
        y = top + lines.index(_number(row, grid.y)) * height
        share = _number(row, grid.value) / highest
        box = svg.rect(x + 1, y + 1, cell - 2, height - 2, "attention")
        parts.append(svg.rect(x + 1, y + 1, cell - 2, height - 2, "hollow"))
        parts.append(box.replace("/>", f' fill-opacity="{share:.2f}"/>'))
        css = "on-attention" if share > BRIGHT else "on-paper"
        label = f"{_number(row, grid.value):.2f}"
        parts.append(svg.text(x + cell / 2, y + height / 2 + 4, label, css, "middle"))
    bottom = top + len(lines) * height
    for place, column in enumerate(columns):
        x = left + (place + 0.5) * cell
        parts.append(svg.text(x, bottom + 16, units.count_text(column), "tick", "middle"))
    parts.append(svg.text(width - 12, bottom + 34, grid.x_name, "name", "end"))
    return svg.document(
        name=f"{name}-{_plain_id(str(rows[0]['model']))}-{width}",
        title=title,
        description=" ".join(
            f"{grid.x} {row[grid.x]}, {grid.y} {row[grid.y]}: {_number(row, grid.value):.2f}."
            for row in rows
        ),
        extent=(width, bottom + 42),
        parts=parts,
    )


def agreement_curves(rows: Sequence[Row], width: int) -> str:
    """Draw KL and top-1 agreement over position, a line a student, the last in rose.

    Rows: model, position (tokens, upper end of the group), forward_kl, forward_kl_error, top1.
    """
    half = (width - 150) / 2
    ends = [_number(row, "position") for row in rows]
    x = chart.Scale(min(ends) / 1.3, max(ends) * 1.3, "log")
    kls = [_number(row, "forward_kl") for row in rows]
    low = min(0.99, *(_number(row, "top1") for row in rows)) - 0.005
    plots = {
        "forward_kl": chart.Plot(60, 36, half, 200, x, chart.Scale(0.0, 1.1 * max(*kls, 1e-9))),
        "top1": chart.Plot(60 + half + 80, 36, half, 200, x, chart.Scale(low, 1.0)),
    }
    names = {"forward_kl": "KL(teacher || student), nats per token", "top1": "same top token"}
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    parts: list[str] = []
    for key, plot in plots.items():
        parts += chart.y_axis(plot, names[key], units.tick_text)
        ticks = sorted(set(ends))
        parts += chart.x_axis(plot, "position (tokens, below)", units.count_text, ticks)
        for model in models:
            own = [row for row in rows if row["model"] == model]
            css = "mamba" if model == models[-1] else "grey"
            points = [plot.point(_number(row, "position"), _number(row, key)) for row in own]
            parts.append(svg.path(points, f"{css}-line"))
            parts += [svg.circle(*point, 3, css) for point in points]
            place = points[-1]
            if key == "forward_kl":
                parts.append(svg.text(place[0] + 6, place[1] - 6, model, "note"))
    return svg.document(
        name=f"agreement-{width}",
        title="Agreement with the teacher by position",
        description=" ".join(
            f"{row['model']} below {_number(row, 'position'):.0f}: KL "
            f"{_number(row, 'forward_kl'):.4f}, top-1 {_number(row, 'top1'):.4f}."
            for row in rows
        ),
        extent=(width, 280),
        parts=parts,
    )


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def _plain_id(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)
