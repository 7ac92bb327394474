"""Figure of serving: speed of models in an engine under each load, a panel a number at once."""

from collections.abc import Sequence

from hybridize.report import units
from hybridize.report.figures import chart, labels, svg
from hybridize.report.tables import Row

HEIGHT = 190.0


def serving_speed(rows: Sequence[Row], width: int) -> str:
    """Draw tokens per second of all answers together over loads, on a log axis.

    Rows: model, is_teacher, is_headline, load (input:output), concurrency, tokens_per_second.
    """
    numbers = sorted({int(_number(row, "concurrency")) for row in rows})
    across = 1 if width < 600 else min(3, len(numbers))
    parts: list[str] = []
    top, bottom = 36.0, 0.0
    for position, number in enumerate(numbers):
        part = [row for row in rows if row["concurrency"] == number]
        corner = (width / across * (position % across), top)
        parts += _panel(part, f"{number} at once (tokens per second)", corner, width / across)
        bottom = top + HEIGHT
        if (position + 1) % across == 0:
            top = bottom + 76
    return svg.document(
        name=f"serving-{width}",
        title="Speed in the serving engine under each load",
        description="; ".join(_words(rows, number) for number in numbers),
        extent=(width, bottom + 44),
        parts=parts,
    )


def _panel(rows: Sequence[Row], name: str, corner: svg.Point, width: float) -> list[str]:
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    loads = list(dict.fromkeys(str(row["load"]) for row in rows))
    gutter = 14 + max(svg.text_width(model) for model in models)
    plot = chart.Plot(
        corner[0] + 62, corner[1], width - 62 - gutter, HEIGHT,
        chart.Scale(-0.25, len(loads) - 0.75 if len(loads) > 1 else 0.25),
        chart.around([_number(row, "tokens_per_second") for row in rows], "log"),
    )  # fmt: skip
    parts = chart.y_axis(plot, name, units.tokens_text, plot.y.ticks(4))
    places = [float(place) for place in range(len(loads))]
    parts += chart.x_axis(plot, "prompt:answer (tokens)", lambda place: loads[int(place)], places)
    ends = []
    for model in models:
        part = [row for row in rows if row["model"] == model]
        points = [
            plot.point(loads.index(str(row["load"])), _number(row, "tokens_per_second"))
            for row in part
        ]
        parts.append(svg.path(points, f"{_css(part[0])}-line"))
        parts += [svg.circle(x, y, 3, _css(part[0])) for x, y in points]
        ends.append(points[-1][1])
    heights = labels.spread(ends, low=plot.top, high=plot.bottom, gap=14)
    for model, y in zip(models, heights, strict=True):
        css = _css(next(row for row in rows if row["model"] == model))
        text = "tick" if css == "grey" else f"{css}-text strong"
        parts.append(svg.text(plot.right + 9, y + 4, model, text))
    return parts


def _css(row: Row) -> str:
    if row["is_teacher"]:
        return "attention"
    return "mamba" if row["is_headline"] else "grey"


def _words(rows: Sequence[Row], number: int) -> str:
    there = [row for row in rows if row["concurrency"] == number]
    told = ", ".join(
        f"{row['model']} {units.three_digits(_number(row, 'tokens_per_second'))} at {row['load']}"
        for row in there
    )
    return f"{number} at once: {told} tokens per second"


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
