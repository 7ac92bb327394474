"""Where log-likelihood and generated answers rank models differently."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Ranked:
    """What one model is ranked by."""

    name: str
    log_likelihood: float
    """Of the reference answers, mean nats per token."""
    accuracy: float
    """Share of generated answers that are right."""
    standard_error: float
    """Of the accuracy."""


@dataclass(frozen=True)
class Disagreement:
    """Two models that likelihood and accuracy order differently."""

    by_likelihood: str
    """The better one by log-likelihood."""
    by_accuracy: str
    """The better one by generated answers."""
    is_clear: bool
    """Whether the accuracies differ by more than the standard error of their difference."""


def find_disagreements(models: Sequence[Ranked]) -> list[Disagreement]:
    """Compare all pairs of models; equals in either order nothing."""
    found = []
    for first, second in combinations(models, 2):
        gain = first.log_likelihood - second.log_likelihood
        lead = first.accuracy - second.accuracy
        if gain * lead < 0:
            names = (first.name, second.name) if gain > 0 else (second.name, first.name)
            noise = math.hypot(first.standard_error, second.standard_error)
            found.append(Disagreement(*names, abs(lead) > noise))
    return found


def describe_disagreements(models: Sequence[Ranked]) -> list[str]:
    """Say each disagreement in a sentence."""
    return [
        f"log-likelihood ranks {one.by_likelihood} before {one.by_accuracy}, generated answers the "
        "other way round"
        + (": trust the answers." if one.is_clear else ", by less than their standard error.")
        for one in find_disagreements(models)
    ]
