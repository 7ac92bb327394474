"""Labels that do not touch: spreading on a line, and placing around points in a plane."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hybridize.report.figures import svg

LINE_PX = 15.0


def spread(
    wanted: Sequence[float], *, low: float, high: float, gap: float = LINE_PX
) -> list[float]:
    """Move positions apart until neighbours are `gap` apart, each as near its wish as can be.

    Order is kept. If not all fit between `low` and `high`, they are spaced evenly.
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    if len(order) > 1 and gap * (len(order) - 1) > high - low:
        gap = (high - low) / (len(order) - 1)
    # Pool neighbours that collide and centre each pool on the mean of its wishes.
    pools: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        pools.append((min(max(wanted[i], low), high) - rank * gap, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (mean_b, num_b), (mean_a, num_a) = pools.pop(), pools.pop()
            total = num_a + num_b
            pools.append(((mean_a * num_a + mean_b * num_b) / total, total))
    placed = [0.0] * len(wanted)
    ceiling = high - gap * (len(order) - 1)
    shifts = [mean for mean, num in pools for _ in range(num)]
    for rank, i in enumerate(order):
        placed[i] = min(max(shifts[rank], low), max(ceiling, low)) + rank * gap
    return placed


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """Return the shared area in square pixels."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(wide, 0.0) * max(high, 0.0)


def along(points: Sequence[svg.Point], step_px: float = 6) -> list[Box]:
    """Cover a line through points with small boxes, for labels to keep clear of."""
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(points):
        num = max(1, int(math.hypot(x1 - x0, y1 - y0) / step_px))
        middles = ((x0 + (x1 - x0) * i / num, y0 + (y1 - y0) * i / num) for i in range(num + 1))
        boxes += [Box(x - 3, y - 3, x + 3, y + 3) for x, y in middles]
    return boxes


def place(
    points: Sequence[svg.Point],
    labels: Sequence[str],
    bounds: Box,
    obstacles: Sequence[Box] = (),
) -> list[Box]:
    """Choose a box for each label, near its point and clear of points, labels and the edge.

    Each label tries rings of places around its point and takes the cheapest; three sweeps let
    the first ones give way to the last. The result is the same for the same input.
    """
    dots = [Box(x - 7, y - 7, x + 7, y + 7) for x, y in points]
    dots += obstacles
    chosen: list[Box | None] = [None] * len(points)
    for _ in range(3):
        for i, (point, label) in enumerate(zip(points, labels, strict=True)):
            taken = dots + [box for j, box in enumerate(chosen) if j != i and box is not None]
            choices = _around(point, svg.text_width(label))
            chosen[i] = min(choices, key=lambda pair: pair[1] + _cost(pair[0], taken, bounds))[0]
    return [box for box in chosen if box is not None]


def _around(point: svg.Point, width: float) -> list[tuple[Box, float]]:
    x, y = point
    choices = []
    for ring in range(5):
        reach = 10.0 + 15.0 * ring
        for rank, (side, height) in enumerate(
            ((1, 0), (-1, 0), (1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1))
        ):
            left = x + reach if side == 1 else x - reach - width if side == -1 else x - width / 2
            middle = y + height * (reach + 2)
            box = Box(left, middle - LINE_PX / 2, left + width, middle + LINE_PX / 2)
            choices.append((box, 40.0 * ring + rank))
    return choices


def _cost(box: Box, taken: Sequence[Box], bounds: Box) -> float:
    outside = max(bounds.left - box.left, 0) + max(box.right - bounds.right, 0)
    outside += max(bounds.top - box.top, 0) + max(box.bottom - bounds.bottom, 0)
    return 10.0 * sum(box.overlap(other) for other in taken) + 100.0 * outside
