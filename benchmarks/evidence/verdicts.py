"""From results of several seeds to verdicts: paired differences and their intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Verdict = Literal["holds", "does not hold", "within noise", "too few seeds"]
QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}
"""Degrees of freedom -> 97.5% quantile of Student's t."""
FEWEST = 3

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Arm -> seed -> what came out."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95% interval by Student's t."""

    mean: float
    half: float
    """Half the width; infinite with a single seed."""
    values: tuple[float, ...]

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.half / QUANTILES[_freedom(len(self.values))]

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values and where the true one lies with 95% confidence."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Interval(mean, math.inf, tuple(values))
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    half = QUANTILES[_freedom(count)] * math.sqrt(variance / count)
    return Interval(mean, half, tuple(values))


def _freedom(count: int) -> int:
    return max(1, min(count - 1, max(QUANTILES)))


def gain(results: Results, better: str, worse: str, metric: str) -> Interval | None:
    """Return by how much `better` is better, seed by seed; None where no seed has both.

    Positive is better. Accuracies are subtracted; of divergences it is the logarithm of the ratio,
    because they range over decades.
    """
    one, other = results.get(better, {}), results.get(worse, {})
    both = sorted(one.keys() & other.keys())
    if metric == "reverse_kl":
        values = [math.log(other[seed][metric] / one[seed][metric]) for seed in both]
    else:
        values = [one[seed][metric] - other[seed][metric] for seed in both]
    return interval(values) if values else None


def judge(found: Interval | None) -> Verdict:
    """Say whether a claimed gain is there: its interval lies above 0, below it, or around it."""
    if found is None or len(found.values) < FEWEST:
        return "too few seeds"
    if found.low > 0:
        return "holds"
    return "does not hold" if found.high < 0 else "within noise"


@dataclass(frozen=True)
class Line:
    """How a score falls with the number of converted layers."""

    slope: Interval
    """Change of the score a layer."""
    bend: Interval
    """How far the middle lies above the straight line between the ends of a fitted parabola."""
    share: float
    """Share of the variance of the means that a straight line tells."""

    @property
    def verdict(self) -> Verdict:
        """A straight line falls, and no bend is seen."""
        if len(self.slope.values) < FEWEST:
            return "too few seeds"
        bent = self.bend.low > 0 or self.bend.high < 0
        if self.slope.high >= 0:
            return "within noise"
        return "does not hold" if bent else "holds"


def fit_line(points: Mapping[int, Mapping[int, float]]) -> Line:
    """Fit each seed's scores (seed -> converted layers -> score) by a line and a parabola."""
    slopes, bends = [], []
    for scores in points.values():
        slopes.append(fit(scores, 1)[1])
        square = fit(scores, 2)[2]
        reach = max(scores) - min(scores)
        bends.append(-square * reach**2 / 4)
    counts = sorted(next(iter(points.values())))
    means = {n: sum(scores[n] for scores in points.values()) / len(points) for n in counts}
    base, slope = fit(means, 1)
    middle = sum(means.values()) / len(means)
    left = sum((score - base - slope * n) ** 2 for n, score in means.items())
    share = 1 - left / sum((score - middle) ** 2 for score in means.values())
    return Line(interval(slopes), interval(bends), share)


def fit(scores: Mapping[int, float], degree: int) -> list[float]:
    """Return the coefficients of the least-squares polynomial, the constant first."""
    counts = sorted(scores)
    found = np.polynomial.polynomial.polyfit(counts, [scores[n] for n in counts], degree)
    return [float(value) for value in found]
