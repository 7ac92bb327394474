"""Count answers: accuracy with its standard error, pass@k, the majority vote, by groups too."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hybridize.evaluation.answers import Answer

LENGTH_EDGES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
"""Prompts are grouped by the smallest of these token counts that holds them."""


@dataclass(frozen=True, kw_only=True)
class KindScore:
    """How well one model answered the problems of one kind (or of all kinds together)."""

    accuracy: float
    """Share of answers whose final answer is exactly right, 0..1."""
    standard_error: float
    """Of the accuracy: sqrt(p (1 - p) / n) over problems, from their own means where several
    answers are drawn to each; for "overall" that of the mean over kinds."""
    num_problems: int
    log_likelihood: float | None
    """Mean log-probability of a token of the reference completion, in nats (at most 0); None where
    a server does not tell it."""
    mean_tokens: float
    """Mean number of generated tokens."""
    finished: float
    """Share of generations that closed their answer within the token limit, 0..1."""
    pass_at: dict[str, float] | None = None
    """k -> chance that one of k answers is right, without bias (Chen et al. 2021, arXiv
    2107.03374); None where one answer is drawn."""
    majority: float | None = None
    """Share of problems whose most frequent final answer is right; None where one is drawn."""


@dataclass(frozen=True, kw_only=True)
class GroupScore:
    """The accuracy on the problems of one kind with one label."""

    kind: str
    by: str
    """`difficulty`, `length` (at most so many prompt tokens), or a label of the suite."""
    value: float
    accuracy: float
    standard_error: float
    num_problems: int


def score(answers: Sequence[Answer]) -> tuple[dict[str, KindScore], KindScore]:
    """Return the score of each kind, and the overall score: the mean over kinds."""
    by_kind = {
        kind: _score_kind([one for one in answers if one.kind == kind])
        for kind in dict.fromkeys(one.kind for one in answers)
    }
    kinds = list(by_kind.values())
    count = len(kinds)
    likelihoods = [one.log_likelihood for one in kinds]
    passes = [one.pass_at for one in kinds if one.pass_at]
    votes = [one.majority for one in kinds if one.majority is not None]
    return by_kind, KindScore(
        accuracy=sum(one.accuracy for one in kinds) / count,
        standard_error=math.sqrt(sum(one.standard_error**2 for one in kinds)) / count,
        num_problems=sum(one.num_problems for one in kinds),
        log_likelihood=_mean(likelihoods),
        mean_tokens=sum(one.mean_tokens for one in kinds) / count,
        finished=sum(one.finished for one in kinds) / count,
        pass_at={k: sum(one[k] for one in passes) / count for k in passes[0]} if passes else None,
        majority=sum(votes) / count if votes else None,
    )


def by_problem(answers: Sequence[Answer]) -> list[list[Answer]]:
    """Collect the answers to each problem, which stand together, the first drawn first."""
    found: list[list[Answer]] = []
    for one in answers:
        if one.sample == 0 or not found:
            found.append([])
        found[-1].append(one)
    return found


def group(answers: Sequence[Answer]) -> list[GroupScore]:
    """Score by difficulty, by length of the prompt, and by each label of the suite."""
    parts: dict[tuple[str, str, float], list[Answer]] = {}
    for one in answers:
        length = next((edge for edge in LENGTH_EDGES if one.prompt_tokens <= edge), math.inf)
        labels = {"difficulty": one.difficulty, "length": length, **one.labels}
        for name, value in labels.items():
            parts.setdefault((one.kind, name, value), []).append(one)
    scores = []
    for (kind, name, value), found in sorted(parts.items()):
        means = _means(found)
        mean, error = _mean_and_error(means)
        scores.append(
            GroupScore(
                kind=kind,
                by=name,
                value=value,
                accuracy=mean,
                standard_error=error,
                num_problems=len(means),
            )
        )
    return scores


def cross(answers: Sequence[Answer]) -> list[dict[str, float]]:
    """Score each combination of the suite's labels; none of a suite without labels."""
    parts: dict[tuple[tuple[str, float], ...], list[Answer]] = {}
    for one in answers:
        if one.labels:
            parts.setdefault(tuple(one.labels.items()), []).append(one)
    cells = []
    for labels, found in sorted(parts.items()):
        means = _means(found)
        mean, error = _mean_and_error(means)
        scored = {"accuracy": mean, "standard_error": error, "num_problems": len(means)}
        cells.append({**dict(labels), **scored})
    return cells


def pass_at(num_samples: int, num_right: int, k: int) -> float:
    """Return the chance that one of `k` of `num_samples` answers is right, if `num_right` are."""
    wrong = num_samples - num_right
    return 1 - math.comb(wrong, k) / math.comb(num_samples, k)


def vote(answers: Sequence[Answer]) -> bool:
    """Tell whether the most frequent final answer is right; of equals, that drawn first counts."""
    counts = Counter(one.found for one in answers if one.found is not None)
    if not counts:
        return False
    winner = max(counts, key=lambda found: counts[found])
    return any(one.right for one in answers if one.found == winner)


def _score_kind(answers: Sequence[Answer]) -> KindScore:
    drawn = by_problem(answers)
    samples = min(map(len, drawn))
    accuracy, error = _mean_and_error(_means(answers))
    pass_rates = None
    if samples > 1:
        counts = [(len(part), sum(one.right for one in part)) for part in drawn]
        pass_rates = {
            str(k): sum(pass_at(*pair, k) for pair in counts) / len(counts)
            for k in _some_counts(samples)
        }
    return KindScore(
        accuracy=accuracy,
        standard_error=error,
        num_problems=len(drawn),
        log_likelihood=_mean([part[0].log_likelihood for part in drawn]),
        mean_tokens=sum(one.num_tokens for one in answers) / len(answers),
        finished=sum(one.finished for one in answers) / len(answers),
        pass_at=pass_rates,
        majority=sum(map(vote, drawn)) / len(drawn) if samples > 1 else None,
    )


def _some_counts(samples: int) -> list[int]:
    """List the powers of two up to the number of samples, and that number."""
    powers = [2**power for power in range(samples.bit_length()) if 2**power < samples]
    return [*powers, samples]


def _means(answers: Sequence[Answer]) -> list[float]:
    return [sum(one.right for one in part) / len(part) for part in by_problem(answers)]


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return mean, math.sqrt(variance / len(values))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
