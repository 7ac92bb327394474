"""Figures of scores: teacher and student by kind, against converted layers, against speed."""

from collections.abc import Sequence

from hybridize.report import units
from hybridize.report.figures import chart, labels, svg
from hybridize.report.tables import Row


def score_bars(rows: Sequence[Row], width: int) -> str:
    """Draw teacher and student bars for each kind, with standard errors, largest loss first.

    Rows: kind, teacher, teacher_error, student, student_error, num_problems, significant, model.
    """
    gutter = 14 + max(svg.text_width(str(row["kind"])) for row in rows)
    pitch = 50.0
    student_name = str(rows[0]["model"])
    scale = chart.Scale(0, 1)
    plot = chart.Plot(gutter, 30, width - gutter - 74, pitch * len(rows), scale, chart.Scale(0, 1))
    parts = [
        svg.text(gutter, 14, "teacher", "attention-text strong"),
        svg.text(gutter + svg.text_width("teacher") + 14, 14, student_name, "mamba-text strong"),
    ]
    for value in scale.ticks():
        x = plot.px(value)
        parts.append(svg.line((x, plot.top - 4), (x, plot.bottom), "grid"))
    for position, row in enumerate(rows):
        y = plot.top + position * pitch
        parts.append(svg.text(gutter - 8, y + 18, str(row["kind"]), "strong", "end"))
        count = units.count_text(_number(row, "num_problems"))
        parts.append(svg.text(gutter - 8, y + 34, f"n = {count}", "tick", "end"))
        parts += _bar(plot, y + 4, row, "teacher", "attention")
        parts += _bar(plot, y + 22, row, "student", "mamba")
        if row["significant"]:
            parts.append(svg.text(plot.right + 8, y + 26, "▼ lower", "mamba-text strong"))
    parts += chart.x_axis(plot, "accuracy (share of problems solved)", units.tick_text)
    return svg.document(
        name=f"score-bars-{width}",
        title=f"Scores of the teacher and {student_name}",
        description="; ".join(
            f"{row['kind']}: teacher {_value(row, 'teacher')}, "
            f"{student_name} {_value(row, 'student')}"
            for row in rows
        ),
        extent=(width, plot.bottom + 44),
        parts=parts,
    )


def _bar(plot: chart.Plot, y: float, row: Row, who: str, css: str) -> list[str]:
    value, error = _number(row, who), _number(row, f"{who}_error")
    low, high = max(value - error, 0.0), min(value + error, 1.0)
    return [
        svg.rect(plot.left, y, plot.px(value) - plot.left, 15, css),
        svg.line((plot.px(low), y + 7.5), (plot.px(high), y + 7.5), "whisker"),
        svg.line((plot.px(low), y + 4), (plot.px(low), y + 11), "whisker"),
        svg.line((plot.px(high), y + 4), (plot.px(high), y + 11), "whisker"),
    ]


def score_by_converted(rows: Sequence[Row], width: int) -> str:
    """Draw a line per kind over the number of converted layers; the mean bold, the worst in rose.

    Rows: kind (`mean` for the mean of all), converted, accuracy, standard_error.
    """
    kinds = list(dict.fromkeys(str(row["kind"]) for row in rows))
    series = {kind: _sorted([row for row in rows if row["kind"] == kind]) for kind in kinds}
    worst = min(
        (kind for kind in kinds if kind != "mean"),
        key=lambda kind: (
            _number(series[kind][-1], "accuracy") - _number(series[kind][0], "accuracy")
        ),
        default=None,
    )
    low = min(_number(row, "accuracy") - _number(row, "standard_error") for row in rows)
    high = max(_number(row, "accuracy") + _number(row, "standard_error") for row in rows)
    gutter = 16 + max(svg.text_width(kind) for kind in kinds)
    converted = sorted({_number(row, "converted") for row in rows})
    plot = chart.Plot(
        46,
        36,
        width - 46 - gutter,
        260,
        chart.around(converted, pad=0.03),
        chart.around((low, high)),
    )
    parts = chart.y_axis(plot, "accuracy (share of problems solved)", units.tick_text)
    parts += chart.x_axis(plot, "converted layers", units.count_text, converted)
    for kind in sorted(kinds, key=lambda kind: (kind == "mean", kind == worst)):
        css = "ink-line" if kind == "mean" else "mamba-line" if kind == worst else "grey-line"
        points = [plot.point(_number(r, "converted"), _number(r, "accuracy")) for r in series[kind]]
        parts.append(svg.path(points, css))
        parts += [svg.circle(x, y, 3, css.removesuffix("-line")) for x, y in points]
        if kind == "mean":
            parts += _whiskers(plot, series[kind], "converted")
    ends = [plot.py(_number(series[kind][-1], "accuracy")) for kind in kinds]
    for kind, y in zip(kinds, labels.spread(ends, low=plot.top, high=plot.bottom), strict=True):
        css = "strong" if kind == "mean" else "mamba-text strong" if kind == worst else "tick"
        parts.append(svg.text(plot.right + 10, y + 4, kind, css))
    return svg.document(
        name=f"score-by-converted-{width}",
        title="Score against the number of converted layers",
        description="; ".join(
            f"{kind}: from {_value(series[kind][0], 'accuracy')} at "
            f"{series[kind][0]['converted']} to {_value(series[kind][-1], 'accuracy')} at "
            f"{series[kind][-1]['converted']} converted layers"
            for kind in kinds
        ),
        extent=(width, plot.bottom + 44),
        parts=parts,
    )


def pareto(rows: Sequence[Row], width: int) -> str:
    """Draw mean score against decode speed relative to the teacher, with the frontier dotted.

    Rows: model, label, score, standard_error, relative_speed, on_frontier, is_teacher; measure,
    what the score is, where it is not the mean score.
    """
    measure = str(rows[0].get("measure") or "mean score (share of problems solved)")
    plot = chart.Plot(
        46, 36, width - 66, 300 if width > 600 else 230,
        chart.around([_number(row, "relative_speed") for row in rows], pad=0.12),
        chart.around(
            [_number(row, "score") + sign * _number(row, "standard_error")
             for row in rows for sign in (-1, 1)],
            pad=0.12,
        ),
    )  # fmt: skip
    parts = chart.y_axis(plot, measure, units.tick_text)
    parts += chart.x_axis(plot, "decode speed, teacher = 1", units.tick_text)
    frontier = sorted(
        (r for r in rows if r["on_frontier"]), key=lambda r: _number(r, "relative_speed")
    )
    dotted = _pixels(plot, frontier, "relative_speed", "score")
    parts.append(svg.path(dotted, "dotted"))
    parts += _whiskers(plot, rows, "relative_speed", "score")
    points = _pixels(plot, rows, "relative_speed", "score")
    parts += _dots_with_labels(plot, points, rows, dotted)
    return svg.document(
        name=f"pareto-{width}",
        title="Mean score against decode speed",
        description="; ".join(
            f"{row['model']}: score {_value(row, 'score')} at "
            f"{units.ratio_text(_number(row, 'relative_speed'))} times the teacher's decode speed"
            for row in rows
        ),
        extent=(width, plot.bottom + 44),
        parts=parts,
    )


def likelihood_scatter(rows: Sequence[Row], width: int) -> str:
    """Draw accuracy of generated answers against mean log-likelihood of the reference answers.

    Rows: model, label, log_likelihood (nats per token), accuracy, standard_error, is_teacher.
    """
    plot = chart.Plot(
        46, 36, width - 66, 240,
        chart.around([_number(row, "log_likelihood") for row in rows], pad=0.12),
        chart.around(
            [_number(row, "accuracy") + sign * _number(row, "standard_error")
             for row in rows for sign in (-1, 1)],
            pad=0.12,
        ),
    )  # fmt: skip
    parts = chart.y_axis(plot, "accuracy of generated answers", units.tick_text)
    parts += chart.x_axis(plot, "log-likelihood (nats per completion token)", units.tick_text)
    parts += _whiskers(plot, rows, "log_likelihood")
    parts += _dots_with_labels(plot, _pixels(plot, rows, "log_likelihood", "accuracy"), rows)
    return svg.document(
        name=f"likelihood-{width}",
        title="Generated accuracy against log-likelihood",
        description="; ".join(
            f"{row['model']}: {_value(row, 'log_likelihood')} nats, accuracy "
            f"{_value(row, 'accuracy')}"
            for row in rows
        ),
        extent=(width, plot.bottom + 44),
        parts=parts,
    )


def _dots_with_labels(
    plot: chart.Plot,
    points: Sequence[svg.Point],
    rows: Sequence[Row],
    frontier: Sequence[svg.Point] = (),
) -> list[str]:
    names = [str(row["label"]) for row in rows]
    bounds = labels.Box(plot.left + 2, plot.top, plot.right + 14, plot.bottom - 4)
    boxes = labels.place(points, names, bounds, labels.along(frontier))
    parts = []
    for (x, y), box, row in zip(points, boxes, rows, strict=True):
        near_x, near_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
        if abs(near_x - x) + abs(near_y - y) > 18:
            parts.append(svg.line((x, y), (near_x, near_y), "leader"))
        parts.append(svg.circle(x, y, 5, "attention" if row["is_teacher"] else "mamba"))
        at, anchor = (box.right, "end") if box.right < x else (box.left, "start")
        parts.append(svg.text(at, box.bottom - 4, str(row["label"]), anchor=anchor))
    return parts


def _whiskers(plot: chart.Plot, rows: Sequence[Row], x: str, y: str = "accuracy") -> list[str]:
    parts = []
    for row in rows:
        error = _number(row, "standard_error")
        ends = [plot.point(_number(row, x), _number(row, y) + sign * error) for sign in (-1, 1)]
        if error > 0:
            parts.append(svg.line(ends[0], ends[1], "error"))
    return parts


def _pixels(plot: chart.Plot, rows: Sequence[Row], x: str, y: str) -> list[svg.Point]:
    return [plot.point(_number(row, x), _number(row, y)) for row in rows]


def _sorted(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: _number(row, "converted"))


def _value(row: Row, key: str) -> str:
    return units.three_digits(_number(row, key))


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
