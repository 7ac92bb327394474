"""Compare two models on the same problems: McNemar's exact test and a paired bootstrap."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hybridize.core.errors import RunError
from hybridize.evaluation.answers import Answer
from hybridize.evaluation.scores import by_problem

RESAMPLES = 2000
"""Draws of the bootstrap."""
COVERED = 0.95
"""Share of them between the ends of the interval."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What a model answers right and the other does not, problem by problem."""

    num_problems: int
    both: int
    """Problems both answer right (with several answers to each: by majority of the answers)."""
    only_model: int
    only_other: int
    neither: int
    difference: float
    """Accuracy of the model less that of the other."""
    standard_error: float
    """Of the difference, from the problems' own differences."""
    low: float
    """Lower end of the 95% interval of the difference, by bootstrap over the problems."""
    high: float
    p_value: float
    """Of McNemar's exact test (two-sided binomial) that both are right equally often."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model beside another on the same problems, by kind and overall (the mean over kinds)."""

    other: str
    overall: Pair
    kinds: dict[str, Pair]

    def __str__(self) -> str:
        one = self.overall
        return (
            f"against {self.other}: {one.difference:+.3f} ± {one.standard_error:.3f} "
            f"(95% {one.low:+.3f} to {one.high:+.3f}), right alone {one.only_model} : "
            f"{one.only_other}, McNemar p = {one.p_value:.2g}"
        )


def compare(
    answers: Sequence[Answer], others: Sequence[Answer], *, other: str = "teacher", seed: int = 0
) -> Comparison:
    """Compare the answers of a model with those of another to the same problems in the same order.

    Args:
        seed: of the bootstrap.

    Raises:
        RunError: they answer different problems.
    """
    ours, theirs = by_problem(answers), by_problem(others)
    pairs = [(mine[0], yours[0]) for mine, yours in zip(ours, theirs, strict=False)]
    same = all((one.kind, one.prompt) == (two.kind, two.prompt) for one, two in pairs)
    if len(ours) != len(theirs) or not same:
        raise RunError(
            f"the answers of {other} are to other problems. "
            "Evaluate both with the same suite, number of problems and seed."
        )
    places: dict[str, list[int]] = {}
    for place, (one, _) in enumerate(pairs):
        places.setdefault(one.kind, []).append(place)
    shares = np.array([[_share(part) for part in side] for side in (ours, theirs)])
    random = np.random.default_rng(seed)
    kinds: dict[str, Pair] = {}
    draws = np.zeros(RESAMPLES)
    for kind, chosen in places.items():
        part = shares[:, chosen]
        drawn = _resample(part[0] - part[1], random)
        kinds[kind] = _pair(part, drawn)
        draws += drawn / len(places)
    return Comparison(other=other, overall=_overall(list(kinds.values()), draws), kinds=kinds)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided exact p-value of so many problems that only one of two answers right."""
    count = only_first + only_second
    tail = sum(math.comb(count, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**count)


def _share(answers: Sequence[Answer]) -> float:
    return sum(one.right for one in answers) / len(answers)


def _resample(differences: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the mean of each of `RESAMPLES` draws of as many problems, with replacement."""
    count = len(differences)
    return np.array(
        [differences[random.integers(count, size=count)].mean() for _ in range(RESAMPLES)]
    )


def _pair(shares: np.ndarray, draws: np.ndarray) -> Pair:
    """Compare two rows of shares of right answers, a column a problem."""
    right = shares > 0.5
    differences = shares[0] - shares[1]
    only_model = int((right[0] & ~right[1]).sum())
    only_other = int((right[1] & ~right[0]).sum())
    low, high = _interval(draws)
    return Pair(
        num_problems=shares.shape[1],
        both=int((right[0] & right[1]).sum()),
        only_model=only_model,
        only_other=only_other,
        neither=int((~right[0] & ~right[1]).sum()),
        difference=float(differences.mean()),
        standard_error=float(differences.std() / math.sqrt(shares.shape[1])),
        low=low,
        high=high,
        p_value=mcnemar(only_model, only_other),
    )


def _overall(kinds: Sequence[Pair], draws: np.ndarray) -> Pair:
    """Add the kinds up; the difference is the mean over kinds, as that of the accuracy is."""
    low, high = _interval(draws)
    only_model = sum(one.only_model for one in kinds)
    only_other = sum(one.only_other for one in kinds)
    return Pair(
        num_problems=sum(one.num_problems for one in kinds),
        both=sum(one.both for one in kinds),
        only_model=only_model,
        only_other=only_other,
        neither=sum(one.neither for one in kinds),
        difference=sum(one.difference for one in kinds) / len(kinds),
        standard_error=math.sqrt(sum(one.standard_error**2 for one in kinds)) / len(kinds),
        low=low,
        high=high,
        p_value=mcnemar(only_model, only_other),
    )


def _interval(draws: np.ndarray) -> tuple[float, float]:
    ends = np.quantile(draws, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return float(ends[0]), float(ends[1])
