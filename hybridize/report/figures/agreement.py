"""Figures of agreement with the teacher: by position, and by how sure the teacher is."""

import math
from collections.abc import Callable, Mapping, Sequence

from hybridize.report import units
from hybridize.report.figures import chart, labels, svg
from hybridize.report.tables import Row

HEIGHT, LEFT = 200.0, 60.0
QUANTITIES = {
    "forward_kl": "KL(teacher || student), nats per token",
    "top1": "same top token (share of places)",
}


def agreement_curves(rows: Sequence[Row], width: int) -> str:
    """Draw KL and top-1 agreement over position, a line a student, the last in rose.

    Rows: model, position (tokens, upper end of the group), forward_kl, top1.
    """
    ends = sorted({_number(row, "position") for row in rows})
    scale = chart.Scale(ends[0] / 1.3, ends[-1] * 1.3, "log")
    return _panels(
        rows,
        width,
        name="agreement",
        title="Agreement with the teacher by position",
        place=lambda row: _number(row, "position"),
        axis=(scale, "position (tokens, below)", {end: units.count_text(end) for end in ends}),
    )


def entropy_curves(rows: Sequence[Row], width: int) -> str:
    """Draw KL and top-1 agreement over the entropy of the teacher, a line a student.

    Rows: model, group (0 is the surest), group_label, tokens, forward_kl, top1.
    """
    names = {_number(row, "group"): str(row["group_label"]) for row in rows}
    counts = {_number(row, "group"): units.count_text(_number(row, "tokens")) for row in rows}
    return _panels(
        rows,
        width,
        name="agreement-entropy",
        title="Agreement with the teacher by the entropy of the teacher",
        place=lambda row: _number(row, "group"),
        axis=(
            chart.Scale(min(names) - 0.3, max(names) + 0.3),
            "entropy of the teacher (nats)",
            names,
        ),
        below={group: f"n = {count}" for group, count in counts.items()},
    )


def _panels(
    rows: Sequence[Row],
    width: int,
    *,
    name: str,
    title: str,
    place: Callable[[Row], float],
    axis: tuple[chart.Scale, str, dict[float, str]],
    below: Mapping[float, str] | None = None,
) -> str:
    """Draw a panel a quantity, side by side where there is room."""
    x_scale, x_name, ticks = axis
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    gutter = 16 + max(svg.text_width(model) for model in models)
    across = 1 if width < 600 else 2
    panel = width / across
    parts: list[str] = []
    bottom = 0.0
    for number, (key, quantity) in enumerate(QUANTITIES.items()):
        corner = (LEFT + panel * (number % across), 36 + (HEIGHT + 92) * (number // across))
        plot = chart.Plot(*corner, panel - LEFT - gutter, HEIGHT, x_scale, _scale(rows, key))
        parts += chart.y_axis(plot, quantity, units.tick_text)
        parts += chart.x_axis(plot, "", lambda value: ticks[value], sorted(ticks))
        for value, text in (below or {}).items():
            parts.append(svg.text(plot.px(value), plot.bottom + 31, text, "tick", "middle"))
        lower = 48 if below else 34
        parts.append(svg.text(plot.right, plot.bottom + lower, x_name, "name", "end"))
        parts += _lines(plot, rows, models, key, place)
        bottom = plot.bottom
    return svg.document(
        name=f"{name}-{width}",
        title=title,
        description=" ".join(_words(rows, model, place, ticks) for model in models),
        extent=(width, bottom + 58),
        parts=parts,
    )


def _lines(
    plot: chart.Plot,
    rows: Sequence[Row],
    models: Sequence[str],
    key: str,
    place: Callable[[Row], float],
) -> list[str]:
    """Draw a line a model with its name at the end."""
    parts: list[str] = []
    ends = []
    for model in models:
        own = sorted((row for row in rows if row["model"] == model), key=place)
        css = "mamba" if model == models[-1] else "grey"
        points = [plot.point(place(row), _number(row, key)) for row in own]
        parts.append(svg.path(points, f"{css}-line"))
        if model == models[-1]:
            parts += [_whisker(plot, row, key, place(row)) for row in own]
        parts += [svg.circle(*point, 3, css) for point in points]
        ends.append(points[-1][1])
    heights = labels.spread(ends, low=plot.top, high=plot.bottom, gap=14)
    for model, y in zip(models, heights, strict=True):
        css = "mamba-text strong" if model == models[-1] else "tick"
        parts.append(svg.text(plot.right + 9, y + 4, model, css))
    return parts


def _whisker(plot: chart.Plot, row: Row, key: str, x: float) -> str:
    """Draw one standard error to both sides, as far as it lies in the plot."""
    error = _number(row, f"{key}_error")
    if not error > 0:
        return ""
    low = max(_number(row, key) - error, plot.y.low)
    high = min(_number(row, key) + error, plot.y.high)
    return svg.line(plot.point(x, low), plot.point(x, high), "error")


def _scale(rows: Sequence[Row], key: str) -> chart.Scale:
    values = [_number(row, key) for row in rows]
    if key == "top1":
        low = min(values)
        return chart.Scale(low - 0.1 * (1.0 - low) - 0.001, 1.0)
    return chart.Scale(0.0, 1.1 * max(*values, 1e-9))


def _words(
    rows: Sequence[Row], model: str, place: Callable[[Row], float], ticks: dict[float, str]
) -> str:
    own = sorted((row for row in rows if row["model"] == model), key=place)
    told = ", ".join(
        f"{ticks[place(row)]}: KL {units.three_digits(_number(row, 'forward_kl'))}, "
        f"same top token {_number(row, 'top1'):.3f}"
        for row in (own[0], own[-1])
    )
    return f"{model}, first and last group: {told}."


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else math.nan
