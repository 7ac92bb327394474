"""Figure of the evidence page: what each claim comes to."""

from collections.abc import Sequence

from hybridize.report import units
from hybridize.report.figures import chart, svg
from hybridize.report.tables import Row

PITCH, TOP = 26.0, 58.0
WORDS_PX = 250.0
"""Width of the column of claims."""


def differences(rows: Sequence[Row], width: int) -> str:
    """Draw a row per claim: the ratio of divergences and the gain in accuracy, with intervals.

    Rows: claim, ratio, ratio_low, ratio_high, accuracy, accuracy_low, accuracy_high, decides
    (reverse_kl or accuracy), verdict.
    """
    panel = (width - WORDS_PX - 40) / 2
    height = PITCH * len(rows)
    ratios = [_number(row, key) for row in rows for key in ("ratio_low", "ratio_high")]
    gains = [_number(row, key) for row in rows for key in ("accuracy_low", "accuracy_high")]
    flat = chart.Scale(0, 1)
    left = chart.Plot(WORDS_PX, TOP, panel, height, chart.around([*ratios, 1.0], "log"), flat)
    right = chart.Plot(left.right + 30, TOP, panel, height, chart.around([*gains, 0.0]), flat)
    parts = [
        svg.text(left.left, 14, "divergence, times the other arm's", "name"),
        svg.text(left.left, 30, "left of the line is better", "note"),
        svg.text(right.left, 14, "accuracy, less the other arm's", "name"),
        svg.text(right.left, 30, "right of the line is better", "note"),
    ]
    for plot, none in ((left, 1.0), (right, 0.0)):
        parts += chart.x_axis(plot, "", units.tick_text)
        parts.append(svg.line((plot.px(none), TOP - 10), (plot.px(none), plot.bottom), "rule"))
    for place, row in enumerate(rows):
        y = TOP + PITCH * (place + 0.5)
        css = "strong" if row["verdict"] == "holds" else ""
        parts.append(svg.text(WORDS_PX - 14, y + 4, str(row["claim"]), css, "end"))
        parts += _whisker(left, y, row, "ratio", row["decides"] == "reverse_kl")
        parts += _whisker(right, y, row, "accuracy", row["decides"] == "accuracy")
    return svg.document(
        name=f"claims-{width}",
        title="What each claim comes to",
        description="; ".join(
            f"{row['claim']}: {row['verdict']}, {units.ratio_text(_number(row, 'ratio'))} times "
            f"the divergence, accuracy {_number(row, 'accuracy'):+.3f}"
            for row in rows
        ),
        extent=(width, TOP + height + 30),
        parts=parts,
    )


def _whisker(plot: chart.Plot, y: float, row: Row, key: str, decides: bool) -> list[str]:
    low, high = (plot.px(_number(row, f"{key}_{end}")) for end in ("low", "high"))
    x = plot.px(_number(row, key))
    return [
        svg.line((low, y), (high, y), "whisker" if decides else "leader"),
        svg.circle(x, y, 4, "mamba" if decides else "grey"),
    ]


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
