"""Figures of the suites: retrieval by length and depth, agreement with the teacher by position."""

import math
from collections.abc import Sequence

from hybridize.report import units
from hybridize.report.figures import chart, svg
from hybridize.report.tables import Row

CELL_HEIGHT = 34.0
BRIGHT = 0.55
"""A cell darker than this share has its number in the colour of the paper."""


def heat_map(rows: Sequence[Row], width: int) -> str:
    """Draw a cell per length and depth, darker where more answers are right, the share in it.

    Rows: model, prompt_length (tokens), depth (0..1), accuracy, num_problems.
    """
    lengths = sorted({_number(row, "prompt_length") for row in rows})
    depths = sorted({_number(row, "depth") for row in rows})
    left, top = 62.0, 40.0
    cell = (width - left - 12) / len(lengths)
    parts = [svg.text(left, 14, "depth of the facts in the prompt, from its beginning", "name")]
    for depth, row in enumerate(depths):
        y = top + depth * CELL_HEIGHT + CELL_HEIGHT / 2 + 4
        parts.append(svg.text(left - 8, y, f"{100 * row:.0f} %", "tick", "end"))
    for entry in rows:
        x = left + lengths.index(_number(entry, "prompt_length")) * cell
        y = top + depths.index(_number(entry, "depth")) * CELL_HEIGHT
        share = _number(entry, "accuracy")
        parts.append(svg.rect(x + 1, y + 1, cell - 2, CELL_HEIGHT - 2, "hollow"))
        parts.append(
            svg.rect(x + 1, y + 1, cell - 2, CELL_HEIGHT - 2, "attention").replace(
                "/>", f' fill-opacity="{share:.2f}"/>'
            )
        )
        css = "on-attention" if share > BRIGHT else "on-paper"
        label = f"{share:.2f}"
        parts.append(svg.text(x + cell / 2, y + CELL_HEIGHT / 2 + 4, label, css, "middle"))
    bottom = top + len(depths) * CELL_HEIGHT
    for column, length in enumerate(lengths):
        x = left + (column + 0.5) * cell
        parts.append(svg.text(x, bottom + 16, units.count_text(length), "tick", "middle"))
    parts.append(svg.text(width - 12, bottom + 34, "prompt (tokens)", "name", "end"))
    model = str(rows[0]["model"])
    return svg.document(
        name=f"recall-{_plain_id(model)}-{width}",
        title=f"Facts found by {model} by length and depth",
        description=" ".join(
            f"{row['prompt_length']} tokens, depth {row['depth']}: {_number(row, 'accuracy'):.2f}."
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
    shares = [_number(row, "top1") for row in rows]
    plots = {
        "forward_kl": chart.Plot(60, 36, half, 200, x, chart.around([0.0, *kls])),
        "top1": chart.Plot(60 + half + 80, 36, half, 200, x, chart.around([*shares, 1.0])),
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
