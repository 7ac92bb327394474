"""Axes: scales from data to pixels, ticks, grid lines and axis names."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from hybridize.report.figures import svg

WIDE = 840
NARROW = 380


@dataclass(frozen=True)
class Scale:
    """A range of data on a linear or a log axis."""

    low: float
    high: float
    kind: Literal["linear", "log"] = "linear"

    def share(self, value: float) -> float:
        """Return where the value lies: 0 at `low`, 1 at `high`."""
        if self.kind == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about: int = 5) -> tuple[float, ...]:
        """Choose round values inside the range."""
        return self._log_ticks(about) if self.kind == "log" else self._linear_ticks(about)

    def _linear_ticks(self, about: int) -> tuple[float, ...]:
        raw = (self.high - self.low) / about
        power = 10 ** math.floor(math.log10(raw))
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.8)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return tuple(round(i * step, 12) for i in range(first, last + 1))

    def _log_ticks(self, about: int) -> tuple[float, ...]:
        low, high = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for multiples in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
            found = tuple(
                m * 10.0**power
                for power in range(low, high + 1)
                for m in multiples
                if self.low * 0.999 <= m * 10.0**power <= self.high * 1.001
            )
            if len(found) >= 3:
                skip = math.ceil(len(found) / (about + 2))
                return found[::skip]
        return found


def around(
    values: Sequence[float], kind: Literal["linear", "log"] = "linear", pad: float = 0.06
) -> Scale:
    """Make a scale that holds all values with some room on both sides."""
    if kind == "log":
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive), max(positive)
        factor = max((high / low) ** pad, 1.1)
        return Scale(low / factor, high * factor, "log")
    low, high = min(values), max(values)
    room = (high - low) * pad or abs(high) * 0.1 or 1.0
    return Scale(low - room, high + room)


@dataclass(frozen=True)
class Plot:
    """A rectangle of pixels with a scale on each side."""

    left: float
    top: float
    width: float
    height: float
    x: Scale
    y: Scale

    @property
    def right(self) -> float:
        """Pixel of the right edge."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """Pixel of the lower edge."""
        return self.top + self.height

    def px(self, value: float) -> float:
        """Return the horizontal pixel of a value."""
        return self.left + self.width * self.x.share(value)

    def py(self, value: float) -> float:
        """Return the vertical pixel of a value."""
        return self.bottom - self.height * self.y.share(value)

    def point(self, x: float, y: float) -> svg.Point:
        """Return the pixel of a data point."""
        return self.px(x), self.py(y)


def binary_ticks(scale: Scale, about: int = 4) -> tuple[float, ...]:
    """Choose powers of two inside the range, for bytes."""
    low, high = math.ceil(math.log2(scale.low)), math.floor(math.log2(scale.high))
    step = max(1, math.ceil((high - low) / about))
    return tuple(2.0**power for power in range(low, high + 1, step))


def y_axis(
    plot: Plot,
    name: str,
    form: Callable[[float], str],
    ticks: Sequence[float] | None = None,
    name_above: float = 12,
) -> list[str]:
    """Draw grid lines with their values, and the name of the axis that many pixels above them."""
    parts = [svg.text(plot.left, plot.top - name_above, name, "name")]
    for value in plot.y.ticks() if ticks is None else ticks:
        y = plot.py(value)
        parts.append(svg.line((plot.left, y), (plot.right, y), "grid"))
        parts.append(svg.text(plot.left - 6, y + 4, form(value), "tick", "end"))
    return parts


def x_axis(
    plot: Plot, name: str, form: Callable[[float], str], ticks: Sequence[float] | None = None
) -> list[str]:
    """Draw the lower edge with its values, leaving out those that would touch, and its name."""
    parts = [svg.line((plot.left, plot.bottom), (plot.right, plot.bottom), "axis")]
    free_from = -math.inf
    about = max(2, int(plot.width // 90))
    for value in plot.x.ticks(about) if ticks is None else ticks:
        x, label = plot.px(value), form(value)
        half = svg.text_width(label, 11) / 2
        parts.append(svg.line((x, plot.bottom), (x, plot.bottom + 4), "axis"))
        if x - half >= free_from:
            parts.append(svg.text(x, plot.bottom + 17, label, "tick", "middle"))
            free_from = x + half + 4
    if name:
        parts.append(svg.text(plot.right, plot.bottom + 34, name, "name", "end"))
    return parts
