"""Figures of series: loss over cumulative tokens, speed and cache bytes over context length."""

from collections.abc import Callable, Sequence

from hybridize.report import units
from hybridize.report.figures import chart, labels, svg
from hybridize.report.tables import Row


def distillation_curves(rows: Sequence[Row], width: int) -> str:
    """Draw training loss over all stages on a log axis, a rule at each conversion.

    Held-out points are rings. Rows: stage, cumulative_tokens, train, heldout (either may be None).
    """
    return _loss_curve(rows, width, name="distillation", quantity="reverse KL (nats per token)")


def sft_curve(rows: Sequence[Row], width: int) -> str:
    """Draw the loss of supervised fine-tuning; the rows are those of `distillation_curves`."""
    return _loss_curve(rows, width, name="sft", quantity="loss (nats per token)")


def _loss_curve(rows: Sequence[Row], width: int, *, name: str, quantity: str) -> str:
    shown = [
        value
        for row in rows
        for value in (row.get("train"), row.get("heldout"))
        if isinstance(value, int | float) and value > 0
    ]
    first = min(_number(row, "stage_start") for row in rows)
    last = max(_number(row, "cumulative_tokens") for row in rows)
    plot = chart.Plot(
        58, 72, width - 72, 270,
        chart.Scale(first, last + (last - first or 1.0) * 0.01), chart.around(shown, "log"),
    )  # fmt: skip
    parts = chart.y_axis(plot, quantity, units.tick_text, name_above=56)
    parts += chart.x_axis(plot, "tokens since the teacher", units.tokens_text)
    stages = list(dict.fromkeys(str(row["stage"]) for row in rows))
    starts, spikes = [], []
    for stage in stages:
        part = [row for row in rows if row["stage"] == stage]
        starts.append(plot.px(_number(part[0], "stage_start")))
        train = [row for row in part if _positive(row, "train")]
        points = [plot.point(_number(r, "cumulative_tokens"), _number(r, "train")) for r in train]
        parts.append(svg.path(points, "mamba-line thin"))
        spikes.append(_spike(part))
        held = [row for row in part if _positive(row, "heldout")]
        for row in held:
            x, y = plot.point(_number(row, "cumulative_tokens"), _number(row, "heldout"))
            parts.append(svg.circle(x, y, 4, "ring"))
    gap = 8 + max(svg.text_width(text) for text in (*stages, *spikes))
    spread = labels.spread(starts, low=plot.left, high=plot.right - gap + 8, gap=gap)
    for stage, spike, x, label_x in zip(stages, spikes, starts, spread, strict=True):
        parts.append(svg.line((x, plot.top - 2), (x, plot.bottom), "rule"))
        parts.append(svg.line((x, plot.top - 2), (label_x, plot.top - 14), "leader"))
        parts.append(svg.text(label_x, plot.top - 32, stage, "strong"))
        parts.append(svg.text(label_x, plot.top - 18, spike, "tick"))
    return svg.document(
        name=f"{name}-{width}",
        title=f"{quantity} over training",
        description="; ".join(_curve_words(stage, rows) for stage in stages),
        extent=(width, plot.bottom + 44),
        parts=parts,
    )


def _spike(rows: Sequence[Row]) -> str:
    """Write the value a stage begins with: held out if that was measured, or else of training."""
    start = [row for row in rows if row["cumulative_tokens"] == row["stage_start"]]
    held = [row for row in start if _positive(row, "heldout")]
    train = [row for row in rows if _positive(row, "train")]
    if held:
        return units.three_digits(_number(held[0], "heldout"))
    return units.three_digits(_number(train[0], "train")) if train else ""


def _curve_words(stage: str, rows: Sequence[Row]) -> str:
    part = [row for row in rows if row["stage"] == stage and _positive(row, "train")]
    if not part:
        return f"{stage}: held-out points only"
    first, last = (units.three_digits(_number(row, "train")) for row in (part[0], part[-1]))
    return f"{stage}: from {first} to {last} nats per token"


_THEORY = {
    "prefill_tokens_per_second": "prefill_tokens_per_second_by_flops",
    "decode_tokens_per_second": "decode_tokens_per_second_by_flops",
    "cache_bytes": "cache_bytes_by_formula",
}
"""What is measured -> key of what is predicted."""


def speed_and_memory(rows: Sequence[Row], width: int) -> str:
    """Draw prefill speed, decode speed and cache bytes against context length, all log-log.

    Points are measured; dashed lines are what counting FLOPs and bytes predicts for the teacher
    and the model of the verdict. Of models of one layout, the one it is `shown_as` is drawn.
    Rows: model, shown_as, is_teacher, is_headline, context_tokens, prefill_tokens_per_second,
    decode_tokens_per_second, cache_bytes, and the predictions of `hybridize.report.theory`.
    """
    rows = [row for row in rows if row.get("shown_as", row["model"]) == row["model"]]
    panels: list[tuple[str, str, Callable[[float], str]]] = [
        ("prefill_tokens_per_second", "prefill (tokens per second)", units.tokens_text),
        ("decode_tokens_per_second", "decode (tokens per second)", units.tokens_text),
        ("cache_bytes", "cache and state (bytes)", units.bytes_text),
    ]
    panels = [panel for panel in panels if any(_positive(row, panel[0]) for row in rows)]
    across = 1 if width < 600 else len(panels)
    parts: list[str] = []
    top, bottom = 36.0, 0.0
    for position, (key, name, form) in enumerate(panels):
        panel_width = width / across
        drawn, bottom = _speed_panel(
            [row for row in rows if _positive(row, key)],
            key=key,
            name=name,
            form=form,
            corner=(panel_width * (position % across), top),
            width=panel_width,
        )
        parts += drawn
        if (position + 1) % across == 0:
            top = bottom + 76
    return svg.document(
        name=f"speed-{width}",
        title="Speed and memory against context length",
        description="; ".join(_speed_words(rows, key, name) for key, name, _ in panels),
        extent=(width, bottom + 44),
        parts=parts,
    )


def _speed_panel(
    rows: Sequence[Row],
    *,
    key: str,
    name: str,
    form: Callable[[float], str],
    corner: svg.Point,
    width: float,
) -> tuple[list[str], float]:
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    contexts = sorted({_number(row, "context_tokens") for row in rows})
    predicted = [row for row in rows if _positive(row, _THEORY[key]) and _is_coloured(row)]
    gutter = 14 + max(svg.text_width(model) for model in models)
    plot = chart.Plot(
        corner[0] + 62, corner[1], width - 62 - gutter, 190,
        chart.around(contexts, "log", pad=0.02),
        chart.around(
            [_number(row, key) for row in rows]
            + [_number(row, _THEORY[key]) for row in predicted],
            "log",
        ),
    )  # fmt: skip
    ticks = chart.binary_ticks(plot.y) if form is units.bytes_text else plot.y.ticks(4)
    parts = chart.y_axis(plot, name, form, ticks)
    parts += chart.x_axis(plot, "context (tokens)", units.count_text, contexts)
    ends = []
    for model in models:
        part = [row for row in rows if row["model"] == model]
        part.sort(key=lambda row: _number(row, "context_tokens"))
        points = [plot.point(_number(row, "context_tokens"), _number(row, key)) for row in part]
        parts.append(svg.path(points, _line_css(part[0])))
        dot = _line_css(part[0]).removesuffix("-line")
        parts += [svg.circle(x, y, 3, dot) for x, y in points]
        expected = [
            plot.point(_number(row, "context_tokens"), _number(row, _THEORY[key]))
            for row in part
            if row in predicted
        ]
        parts.append(svg.path(expected, "theory"))
        ends.append(points[-1][1])
    places = labels.spread(ends, low=plot.top, high=plot.bottom, gap=14)
    for model, y in zip(models, places, strict=True):
        row = next(row for row in rows if row["model"] == model)
        css = {"attention-line": "attention-text strong", "mamba-line": "mamba-text strong"}
        parts.append(svg.text(plot.right + 9, y + 4, model, css.get(_line_css(row), "tick")))
    return parts, plot.bottom


def _is_coloured(row: Row) -> bool:
    return bool(row["is_teacher"] or row["is_headline"])


def _line_css(row: Row) -> str:
    if row["is_teacher"]:
        return "attention-line"
    return "mamba-line" if row["is_headline"] else "grey-line"


def _speed_words(rows: Sequence[Row], key: str, name: str) -> str:
    longest = max(_number(row, "context_tokens") for row in rows)
    there = [row for row in rows if row["context_tokens"] == longest and _positive(row, key)]
    values = ", ".join(f"{row['model']} {units.three_digits(_number(row, key))}" for row in there)
    return f"{name} at context {units.count_text(longest)}: {values}"


def _positive(row: Row, key: str) -> bool:
    return _number(row, key) > 0


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
