"""Figures of importance: a bar a layer, one measurement alone or one panel before each stage."""

from collections.abc import Sequence

from hybridize.report import units
from hybridize.report.figures import chart, svg
from hybridize.report.tables import Row

CUT = 3.0
"""The tallest bar is cut if it is this many times the next one, so that the others can be seen."""
PANEL_WIDTH = 250


def importance_bars(rows: Sequence[Row], width: int) -> str:
    """Draw a bar per layer, linear, coloured by what became of the layer; the top three are named.

    A bar far above all others is cut, and its value written on it.
    Rows: source, layer, score, standard_error, converted (bool), unit.
    """
    unit = str(rows[0]["unit"])
    layers = [str(row["layer"]) for row in rows]
    plot = chart.Plot(
        52, 36, width - 60, 200, chart.Scale(-0.5, len(layers) - 0.5), _scale(rows)
    )  # fmt: skip
    parts = chart.y_axis(plot, f"importance ({unit})", units.tick_text)
    parts += _panel(plot, rows, layers)
    parts += _legend(plot)
    return svg.document(
        name=f"importance-{rows[0]['source']}-{width}",
        title="Importance of each layer",
        description=f"Bars by layer. {_words(rows)}",
        extent=(width, plot.bottom + 44),
        parts=parts,
    )


def replacement_bars(rows: Sequence[Row], width: int) -> str:
    """Draw a panel of bars before each stage, all on one scale and over the same layers.

    Rows: stage, layer, score, standard_error, converted (bool), unit.
    """
    stages = list(dict.fromkeys(str(row["stage"]) for row in rows))
    layers = [str(layer) for layer in sorted({int(_number(row, "layer")) for row in rows})]
    across = min(len(stages), max(1, width // PANEL_WIDTH))
    panel, height = width / across, 150.0
    scale = _scale(rows)
    parts: list[str] = []
    bottom = 0.0
    for number, stage in enumerate(stages):
        x, y = panel * (number % across) + 42, 46 + (height + 92) * (number // across)
        plot = chart.Plot(x, y, panel - 52, height, chart.Scale(-0.5, len(layers) - 0.5), scale)
        parts.append(svg.text(x, y - 30, f"before {stage}", "strong"))
        name = f"importance ({rows[0]['unit']})"
        parts += chart.y_axis(plot, name, units.tick_text)
        own = [row for row in rows if str(row["stage"]) == stage]
        parts += _panel(plot, own, layers) + _legend(plot)
        bottom = plot.bottom
    return svg.document(
        name=f"importance-replace_one-{width}",
        title="Importance of each layer before each stage",
        description=" ".join(
            f"Before {stage}: {_words([row for row in rows if str(row['stage']) == stage])}"
            for stage in stages
        ),
        extent=(width, bottom + 44),
        parts=parts,
    )


def _scale(rows: Sequence[Row]) -> chart.Scale:
    """Make a linear axis for all bars, or for all but the tallest if that is far above them."""
    tops: dict[object, float] = {}
    for row in rows:
        top = _number(row, "score") + _number(row, "standard_error")
        tops[row["layer"]] = max(top, tops.get(row["layer"], 0.0))
    ranked = sorted(tops.values(), reverse=True)
    highest = max(0.0, ranked[0])
    if len(ranked) > 2 and highest > CUT * ranked[1] > 0:
        highest = 1.3 * ranked[1]
    lowest = min(_number(row, "score") - _number(row, "standard_error") for row in rows)
    return chart.Scale(min(0.0, lowest), highest * 1.12 or 1.0)


def _panel(plot: chart.Plot, rows: Sequence[Row], layers: Sequence[str]) -> list[str]:
    """Draw bars over the layers, with whiskers, names of the top three and the axis."""
    bar = plot.width / len(layers)
    top_three = sorted(rows, key=lambda row: -_number(row, "score"))[:3]
    parts: list[str] = []
    for row in rows:
        x, score = plot.px(layers.index(str(row["layer"]))), _number(row, "score")
        error, is_cut = _number(row, "standard_error"), score > plot.y.high
        ends = sorted((plot.py(min(score, plot.y.high)), plot.py(0)))
        css = "mamba" if row["converted"] else "attention"
        parts.append(svg.rect(x - bar * 0.38, ends[0], bar * 0.76, ends[1] - ends[0], css))
        label = str(row["layer"])
        if is_cut:
            parts += _cut(plot, x, bar, f"{label}: {units.three_digits(score)}")
            continue
        if error > 0:
            low, high = (plot.py(score + sign * error) for sign in (-1, 1))
            parts.append(svg.line((x, low), (x, high), "whisker"))
        if row in top_three:
            above = min(plot.py(score + error), plot.py(0)) - 5
            parts.append(svg.text(x, above, label, "strong", "middle"))
    every = max(1, round(26 / bar))
    parts.append(svg.line((plot.left, plot.py(0)), (plot.right, plot.py(0)), "axis"))
    for position in range(0, len(layers), every):
        x = plot.px(position)
        parts.append(svg.text(x, plot.bottom + 17, layers[position], "tick", "middle"))
    return parts


def _cut(plot: chart.Plot, x: float, bar: float, label: str) -> list[str]:
    """Cut a bar near its top, and write what it is beside it."""
    sides = ((x - bar * 0.44, plot.top + 18), (x + bar * 0.44, plot.top + 10))
    is_right = x + bar * 0.44 + svg.text_width(label) < plot.right
    at, anchor = (x + bar * 0.44 + 3, "start") if is_right else (x - bar * 0.44 - 3, "end")
    return [svg.line(*sides, "gap"), svg.text(at, plot.top + 12, label, "strong", anchor)]


def _legend(plot: chart.Plot) -> list[str]:
    kept_at = plot.left + svg.text_width("converted") + 12
    return [
        svg.text(plot.right, plot.bottom + 34, "layer, from 0", "name", "end"),
        svg.text(plot.left, plot.bottom + 34, "converted", "mamba-text strong"),
        svg.text(kept_at, plot.bottom + 34, "kept", "attention-text strong"),
    ]


def _words(rows: Sequence[Row]) -> str:
    ranked = sorted(rows, key=lambda row: -_number(row, "score"))
    named = [
        f"layer {row['layer']} ({units.three_digits(_number(row, 'score'))} {row['unit']})"
        for row in ranked
    ]
    return f"Most important: {', '.join(named[:3])}. Least important: {named[-1]}."


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
