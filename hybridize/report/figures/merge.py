"""Figure of a merge: score over the weight of the first of two models."""

from collections.abc import Sequence

from hybridize.report import units
from hybridize.report.figures import chart, labels, svg
from hybridize.report.tables import Row


def merge_sweep(rows: Sequence[Row], width: int) -> str:
    """Draw the mean score over the weight in ink, each kind in grey, the merge's own in rose.

    Rows: weight (0..1), kind (`mean` for the mean of all), accuracy, standard_error, is_merge.
    """
    kinds = list(dict.fromkeys(str(row["kind"]) for row in rows))
    series = {
        kind: sorted(
            (row for row in rows if row["kind"] == kind), key=lambda row: _number(row, "weight")
        )
        for kind in kinds
    }
    values = [
        _number(row, "accuracy") + sign * _number(row, "standard_error") * (row["kind"] == "mean")
        for row in rows
        for sign in (-1, 1)
    ]
    gutter = 16 + max(svg.text_width(kind) for kind in kinds)
    plot = chart.Plot(
        46, 36, width - 46 - gutter, 220, chart.Scale(-0.02, 1.02), chart.around(values)
    )  # fmt: skip
    weights = [_number(row, "weight") for row in series["mean"]]
    parts = chart.y_axis(plot, "score (share of problems solved)", units.tick_text)
    parts += chart.x_axis(plot, "weight of the first model", units.tick_text, weights)
    for kind in sorted(kinds, key=lambda kind: kind == "mean"):
        parts += _line(plot, series[kind], "ink" if kind == "mean" else "grey")
    ends = [plot.py(_number(series[kind][-1], "accuracy")) for kind in kinds]
    for kind, y in zip(kinds, labels.spread(ends, low=plot.top, high=plot.bottom), strict=True):
        parts.append(svg.text(plot.right + 10, y + 4, kind, "strong" if kind == "mean" else "tick"))
    return svg.document(
        name=f"merge-sweep-{width}",
        title="Score over the weight of the merge",
        description="Mean score: "
        + ", ".join(
            f"{units.three_digits(_number(row, 'accuracy'))} at weight {_number(row, 'weight'):g}"
            for row in series["mean"]
        ),
        extent=(width, plot.bottom + 44),
        parts=parts,
    )


def _line(plot: chart.Plot, rows: Sequence[Row], css: str) -> list[str]:
    """Draw one series; in ink with standard errors and the merge marked."""
    points = [plot.point(_number(row, "weight"), _number(row, "accuracy")) for row in rows]
    parts = [svg.path(points, f"{css}-line")]
    for row, (x, y) in zip(rows, points, strict=True):
        is_merge = css == "ink" and bool(row["is_merge"])
        if css == "ink":
            score, error = _number(row, "accuracy"), _number(row, "standard_error")
            parts.append(
                svg.line((x, plot.py(score - error)), (x, plot.py(score + error)), "error")
            )
        parts.append(svg.circle(x, y, 5 if is_merge else 3, "mamba" if is_merge else css))
    return parts


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
