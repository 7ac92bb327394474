"""Figures of the suites that are maps: facts found, and distance to the teacher."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybridize.report import units
from hybridize.report.figures import svg
from hybridize.report.figures.agreement import agreement_curves
from hybridize.report.tables import Row

__all__ = ["agreement_curves", "error_map", "heat_map"]

CELL_HEIGHT, LOW_CELL_HEIGHT = 34.0, 20.0
FEW_LINES = 8
"""With more lines than this, cells are low."""
SWITCH = 0.7525
"""Share of the colour of heat over the paper at which black and white are equally readable on it,
on light paper and on dark."""


@dataclass(frozen=True)
class _Grid:
    """What a map has on its sides: keys of the rows, names of the axes, how values are written."""

    x: str
    y: str
    value: str
    x_name: str
    y_name: str
    y_form: Callable[[float], str]
    x_said: str
    y_said: str


def heat_map(rows: Sequence[Row], width: int) -> str:
    """Draw a cell per length and depth, stronger where more answers are right, the share in it.

    Rows: model, prompt_length (tokens), depth (0..1), accuracy, num_problems.
    """
    grid = _Grid(
        x="prompt_length",
        y="depth",
        value="accuracy",
        x_name="prompt (tokens)",
        y_name="share of facts found, by depth in the prompt from its beginning",
        y_form=lambda depth: f"{100 * depth:.0f} %",
        x_said="length",
        y_said="depth",
    )
    title = "Facts found by length and depth"
    return _draw(rows, width, grid, "recall", title, highest=1.0)


def error_map(rows: Sequence[Row], width: int) -> str:
    """Draw a cell per layer and position, stronger where hidden states are farther off.

    Rows: model, layer, position (tokens, upper end of the group), error (relative).
    """
    grid = _Grid(
        x="position",
        y="layer",
        value="error",
        x_name="position (tokens, below)",
        y_name="relative distance of the states after each layer from the teacher's",
        y_form=lambda layer: f"{layer:.0f}",
        x_said="position",
        y_said="layer",
    )
    title = "Distance from the teacher by layer and position"
    highest = max(_number(row, "error") for row in rows)
    return _draw(rows, width, grid, "layer-errors", title, highest=highest or 1.0)


def _draw(
    rows: Sequence[Row], width: int, grid: _Grid, name: str, title: str, *, highest: float
) -> str:
    """Draw a map a model, two side by side where there is room for it."""
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    across = 2 if width > 600 and len(models) > 1 else 1
    panel, parts, top, bottom = width / across, list[str](), 0.0, 0.0
    for number, model in enumerate(models):
        own = [row for row in rows if str(row["model"]) == model]
        if number % across == 0:
            top = bottom + (24 if number else 0)
        left = panel * (number % across)
        drawn, end = _panel(own, (left, top), panel, grid, highest=highest)
        parts, bottom = parts + drawn, max(bottom, end)
    return svg.document(
        name=f"{name}-{_plain_id('-'.join(models))}-{width}",
        title=title,
        description=" ".join(
            f"{model}: {_describe([row for row in rows if str(row['model']) == model], grid)}"
            for model in models
        ),
        extent=(width, bottom),
        parts=parts,
    )


def _panel(
    rows: Sequence[Row], corner: svg.Point, width: float, grid: _Grid, *, highest: float
) -> tuple[list[str], float]:
    """Draw the map of one model; a cell with the value `highest` is the strongest."""
    columns = sorted({_number(row, grid.x) for row in rows})
    lines = sorted({_number(row, grid.y) for row in rows})
    left, top = corner[0] + 50.0, corner[1] + 28.0
    height = CELL_HEIGHT if len(lines) <= FEW_LINES else LOW_CELL_HEIGHT
    cell = (width - 62) / len(columns)
    model = str(rows[0]["model"])
    named = left + svg.text_width(model) + 8
    parts = [svg.text(left, corner[1] + 14, model, "strong")]
    for number, line in enumerate(_break(grid.y_name, corner[0] + width - 12 - named)):
        parts.append(svg.text(named, corner[1] + 14 + 14 * number, line, "name"))
        top += 14 * (number > 0)
    for place, value in enumerate(lines):
        y = top + (place + 0.5) * height + 4
        parts.append(svg.text(left - 8, y, grid.y_form(value), "tick", "end"))
    for row in rows:
        x = left + columns.index(_number(row, grid.x)) * cell
        y = top + lines.index(_number(row, grid.y)) * height
        share = _number(row, grid.value) / highest
        box = svg.rect(x + 1, y + 1, cell - 2, height - 2, "heat")
        parts.append(svg.rect(x + 1, y + 1, cell - 2, height - 2, "hollow"))
        parts.append(box.replace("/>", f' fill-opacity="{share:.2f}"/>'))
        css = "on-heat" if share > SWITCH else "on-faint"
        label = f"{_number(row, grid.value):.2f}"
        parts.append(svg.text(x + cell / 2, y + height / 2 + 4, label, css, "middle"))
    bottom = top + len(lines) * height
    for place, column in enumerate(columns):
        x = left + (place + 0.5) * cell
        parts.append(svg.text(x, bottom + 16, units.count_text(column), "tick", "middle"))
    parts.append(svg.text(corner[0] + width - 12, bottom + 34, grid.x_name, "name", "end"))
    return parts, bottom + 42


def _break(text: str, room: float) -> list[str]:
    """Break a text into lines of that many pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if svg.text_width(longer) > room and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _describe(rows: Sequence[Row], grid: _Grid) -> str:
    """Say where the lowest and the highest value stand, and the mean of each column."""
    ranked = sorted(rows, key=lambda row: _number(row, grid.value))
    ends = [
        f"{word} {_number(row, grid.value):.2f} at {grid.x_said} {_number(row, grid.x):.0f}, "
        f"{grid.y_said} {grid.y_form(_number(row, grid.y))}"
        for word, row in (("lowest", ranked[0]), ("highest", ranked[-1]))
    ]
    means = []
    for column in sorted({_number(row, grid.x) for row in rows}):
        there = [_number(row, grid.value) for row in rows if _number(row, grid.x) == column]
        means.append(f"{sum(there) / len(there):.2f} at {column:.0f}")
    return f"{'; '.join(ends)}. Mean by {grid.x_said}: {', '.join(means)}."


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def _plain_id(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)
