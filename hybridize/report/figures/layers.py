"""Figures with one mark per layer: layout strips, and bump charts of ranks."""

from collections.abc import Sequence

from hybridize.core.layout import LETTERS, Layout
from hybridize.report import units
from hybridize.report.figures import svg
from hybridize.report.figures.bars import importance_bars
from hybridize.report.tables import Row

__all__ = ["importance_bars", "layout_strips", "rank_bumps"]


def layout_strips(rows: Sequence[Row], width: int) -> str:
    """Draw a row of cells per model: a letter per mixer, an outline where a layer was converted.

    Rows: model, layout (text), converted, num_layers, new_layers (numbers as text), tokens,
    state (done, running, planned).
    """
    gutter = 16 + max(svg.text_width(str(row["model"])) for row in rows)
    num_layers = max(Layout.parse(str(row["layout"])).num_layers for row in rows)
    per_line = max(10, int((width - gutter - 8) / 15) // 10 * 10)
    per_line = min(per_line, num_layers)
    cell = min(26.0, (width - gutter - 8 - 4 * ((per_line - 1) // 10)) / per_line)
    parts: list[str] = []
    for layer in range(0, per_line, 5 if cell < 20 else 1):
        x = gutter + layer * cell + 4 * (layer // 10) + cell / 2
        parts.append(svg.text(x, 12, str(layer), "tick", "middle"))
    top = 20.0
    for row in rows:
        parts.append(svg.text(gutter - 10, top + cell / 2 + 4, str(row["model"]), "strong", "end"))
        fresh = {int(layer) for layer in str(row.get("new_layers") or "").split()}
        planned = " planned" if row.get("state") == "planned" else ""
        for layer, mixer in enumerate(Layout.parse(str(row["layout"])).mixers):
            x = gutter + layer % per_line * cell + 4 * (layer % per_line // 10)
            y = top + layer // per_line * (cell + 2)
            parts += _cell(x, y, cell, mixer, layer in fresh, planned)
        note = _strip_note(row)
        end = gutter + per_line * cell + 4 * ((per_line - 1) // 10) + 12
        if end + svg.text_width(note, 11) < width:
            parts.append(svg.text(end, top + cell / 2 + 4, note, "note"))
        lines = -(-Layout.parse(str(row["layout"])).num_layers // per_line)
        top += lines * (cell + 2) + (5 if num_layers <= per_line else 11)
    return svg.document(
        name=f"layout-strips-{width}",
        title="Layout of each model",
        description=" ".join(f"{row['model']}: {row['layout']}." for row in rows),
        extent=(width, top + 4),
        parts=parts,
    )


def _strip_note(row: Row) -> str:
    words = [f"{row['converted']} of {row['num_layers']} converted"]
    if row.get("tokens"):
        words.append(f"{units.tokens_text(_number(row, 'tokens'))} tokens")
    if row.get("state") not in (None, "done"):
        words.append(str(row["state"]))
    return ", ".join(words)


def _cell(x: float, y: float, cell: float, mixer: str, fresh: bool, planned: str) -> list[str]:
    colour = {"attention": "attention", "identity": "hollow"}.get(mixer, "mamba")
    on = {"attention": "on-attention", "hollow": "on-paper", "mamba": "on-mamba"}[colour]
    parts = [svg.rect(x + 0.5, y, cell - 1.5, cell, colour + planned)]
    small = " small" if cell < 18 else ""
    if fresh:
        parts.append(svg.rect(x + 1.5, y + 1, cell - 3.5, cell - 2, "fresh" + small + planned))
    letter = LETTERS.get(mixer, mixer.rpartition(":")[2][:1].upper())
    return [*parts, svg.text(x + cell / 2, y + cell / 2 + 4, letter, on + small, "middle")]


def rank_bumps(rows: Sequence[Row], width: int) -> str:
    """Draw ranks before and after a short distillation, a panel per stage.

    Bold lines cross the cut or are the two longest jumps; all others are grey. Rank 1 is the
    least important layer and stands at the top; what stands above the cut line is converted.

    Rows: stage, layer, rank_before, rank_after, cut (how many were to be converted), steps.
    """
    stages = list(dict.fromkeys(str(row["stage"]) for row in rows))
    across = min(len(stages), max(1, width // 270))
    gap = 24.0
    panel_width = min(320.0, (width - gap * (across - 1)) / across)
    parts: list[str] = []
    top = 0.0
    for first in range(0, len(stages), across):
        bottoms = []
        for column, stage in enumerate(stages[first : first + across]):
            panel = [row for row in rows if row["stage"] == stage]
            drawn, bottom = _bump_panel(panel, column * (panel_width + gap), top, panel_width)
            parts += drawn
            bottoms.append(bottom)
        top = max(bottoms) + 26
    return svg.document(
        name=f"replacement-ranks-{width}",
        title="Ranks before and after a short distillation",
        description="; ".join(_bump_words([r for r in rows if r["stage"] == s]) for s in stages),
        extent=(width, top - 14),
        parts=parts,
    )


def _bump_panel(
    rows: Sequence[Row], left: float, top: float, width: float
) -> tuple[list[str], float]:
    num = len(rows)
    pitch = 17.0 if num <= 24 else 12.0
    start, x_before, x_after = top + 58, left + 66, left + width - 112
    dark = _highlighted(rows)
    parts = [
        svg.text(left, top + 14, f"before {rows[0]['stage']}", "strong"),
        svg.text(x_before, top + 40, "0 steps", "name", "middle"),
        svg.text(x_after, top + 40, f"{rows[0]['steps']} steps", "name", "middle"),
    ]
    for row in sorted(rows, key=lambda row: row["layer"] in dark):
        y_before = start + (_number(row, "rank_before") - 1) * pitch
        y_after = start + (_number(row, "rank_after") - 1) * pitch
        is_dark = row["layer"] in dark
        shown = "ink-line" if is_dark else "grey-line"
        dot = "ink" if is_dark else "grey"
        parts.append(svg.path([(x_before, y_before), (x_after, y_after)], shown))
        parts += [svg.circle(x, y, 3, dot) for x, y in ((x_before, y_before), (x_after, y_after))]
        css = "strong" if is_dark else "tick"
        change = int(_number(row, "rank_before") - _number(row, "rank_after"))
        sign = "+" if change > 0 else "\N{MINUS SIGN}"
        moved = f" ({sign}{abs(change)})" if is_dark and change else ""
        parts.append(svg.text(x_before - 9, y_before + 4, f"{row['layer']}", css, "end"))
        parts.append(svg.text(x_after + 9, y_after + 4, f"{row['layer']}{moved}", css))
    cut = row_cut(rows)
    if 0 < cut < num:
        y = start + (cut - 0.5) * pitch
        parts.append(svg.line((left + 16, y), (left + width - 34, y), "rule"))
        parts.append(svg.text(left + width - 30, y + 4, "cut", "tick"))
    return parts, start + (num - 1) * pitch


def row_cut(rows: Sequence[Row]) -> int:
    """Return how many layers of this stage were to be converted."""
    return int(_number(rows[0], "cut"))


def _highlighted(rows: Sequence[Row]) -> set[object]:
    cut = row_cut(rows)
    crossing = {
        row["layer"]
        for row in rows
        if (_number(row, "rank_before") <= cut) != (_number(row, "rank_after") <= cut)
    }
    jumps = sorted(rows, key=_jump, reverse=True)
    return crossing | {row["layer"] for row in jumps[:2] if _jump(row) > 1}


def _jump(row: Row) -> float:
    return abs(_number(row, "rank_before") - _number(row, "rank_after"))


def _bump_words(rows: Sequence[Row]) -> str:
    after = sorted(rows, key=lambda row: _number(row, "rank_after"))
    order = " ".join(str(row["layer"]) for row in after)
    return f"before {rows[0]['stage']}, layers least important first after distillation: {order}"


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
