"""Figures: what they show, that labels stay apart, that scales and numbers are right."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridize.report import rows, units
from hybridize.report.figures import chart, labels, layers, scores
from hybridize.report.run_data import read_run


def _texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_a_strip_has_the_letter_of_every_layer(run_folder: Path) -> None:
    table = rows.layouts_table(read_run(run_folder))
    drawn = _texts(layers.layout_strips(table.rows, chart.WIDE))
    expected = "".join(str(row["layout"]).replace(" ", "") for row in table.rows)
    assert "".join(text for text in drawn if text in ("A", "M")) == expected
    assert layers.layout_strips(table.rows, chart.WIDE).count("fresh") == 7


def test_fifty_layers_fit_both_widths() -> None:
    row = {"model": "h30", "layout": "attention*20 mamba2*30", "converted": 30, "num_layers": 50}
    for width in (chart.WIDE, chart.NARROW):
        drawn = layers.layout_strips([row], width)
        ends = [
            float(x) + float(wide)
            for x, wide in re.findall(r'<rect[^>]* x="([\d.]+)"[^>]* width="([\d.]+)"', drawn)
        ]
        assert len(ends) == 50 and max(ends) <= width


def test_importance_bars_name_the_three_most_important(run_folder: Path) -> None:
    run = read_run(run_folder)
    drawn = layers.importance_bars(rows.importance_table(run, "leave_one_out").rows, chart.WIDE)
    strong = re.findall(r'<text class="strong"[^>]*>(\d+)</text>', drawn)
    top = [entry.layer for entry in run.importance["leave_one_out"].ranked()[::-1][:3]]
    assert sorted(strong) == sorted(str(layer) for layer in top)


def test_bumps_are_dark_where_they_cross_the_cut() -> None:
    orders = {0: (1, 4), 1: (2, 1), 2: (3, 2), 3: (4, 3)}
    table = [
        {"stage": "h2", "layer": layer, "rank_before": b, "rank_after": a, "cut": 2, "steps": 100}
        for layer, (b, a) in orders.items()
    ]
    drawn = layers.rank_bumps(table, chart.WIDE)
    assert drawn.count('class="ink-line"') == 2
    assert "0 (\N{MINUS SIGN}3)" in _texts(drawn) and "2 (+1)" in _texts(drawn)


def test_the_frontier_leaves_out_what_another_model_beats() -> None:
    points = [(0.9, 1.0), (0.8, 1.5), (0.7, 1.4), (0.8, 1.2)]
    marked = rows.mark_frontier([{"score": s, "relative_speed": v} for s, v in points])
    assert [row["on_frontier"] for row in marked] == [True, True, False, False]


def test_labels_of_close_points_do_not_touch() -> None:
    points = [(200.0 + 6 * i, 150.0 + 4 * (i % 2)) for i in range(7)]
    names = [f"h{i} · {i}00M" for i in range(7)]
    boxes = labels.place(points, names, labels.Box(40, 20, 420, 300))
    for i, box in enumerate(boxes):
        assert all(box.overlap(other) == 0 for other in boxes[i + 1 :])
        assert box.left >= 40 and box.right <= 420


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12))
def test_spread_labels_keep_their_distance_and_their_order(wanted: list[float]) -> None:
    placed = labels.spread(wanted, low=0, high=300, gap=20)
    gaps = [b - a for a, b in zip(sorted(placed), sorted(placed)[1:], strict=False)]
    assert all(gap >= 20 - 1e-6 for gap in gaps)
    assert min(placed) >= -1e-6 and max(placed) <= 300 + 1e-6
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    assert order == sorted(range(len(placed)), key=lambda i: placed[i])


@given(st.floats(1e-6, 1e6), st.floats(1.05, 1e6), st.sampled_from(["linear", "log"]))
def test_ticks_lie_inside_the_scale(low: float, ratio: float, kind: str) -> None:
    scale = chart.Scale(low, low * ratio, kind)
    ticks = scale.ticks()
    assert all(low * 0.998 <= tick <= low * ratio * 1.002 for tick in ticks)
    assert list(ticks) == sorted(set(ticks)) and len(ticks) <= 12


def test_a_scatter_with_one_point_is_drawn() -> None:
    row = {
        "model": "teacher", "label": "teacher", "score": 0.5, "standard_error": None,
        "relative_speed": 1.0, "on_frontier": True, "is_teacher": True,
    }  # fmt: skip
    assert "teacher" in _texts(scores.pareto([row], chart.NARROW))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.91234, "0.912"), (1.9, "1.90"), (1234.5, "1,230"), (0.000042, "4.20e-05"), (0, "0"),
     (0.9999, "1.00"), (-0.0512, "-0.0512"), (99.96, "100"), (float("nan"), units.MISSING)],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert units.three_digits(value) == text
