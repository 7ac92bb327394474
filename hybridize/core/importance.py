"""Importance: how much the model suffers without each layer's attention; higher means keep."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hybridize.core.artifacts import plain, read_json, write_json
from hybridize.core.errors import ModelError, RunError
from hybridize.core.quantities import short_count, short_seconds


@dataclass(frozen=True, kw_only=True)
class LayerScore:
    """What one layer scored."""

    layer: int
    """Layer, counted from 0."""
    score: float
    """Importance in the unit of the metric: nats a token for kl, a share for accuracy."""
    standard_error: float | None = None
    """Standard error of `score`; None when it was not estimated."""
    score_before: float | None = None
    """replace_one: the score right after the replacement, before the short distillation."""
    tokens: int = 0
    """Tokens the score was measured on."""
    seconds: float = 0.0
    """Time the measurement took."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Importance:
    """The scores of all measured layers of one model, under one method."""

    method: str
    """leave_one_out: the layer is skipped. replace_one: its attention is replaced and trained."""
    metric: str
    """kl, reverse_kl or accuracy: what `score` counts."""
    scope: str = "layer"
    """What is left out: the whole layer, or its attention only."""
    mixer: str | None = None
    """replace_one: the mixer that took the place of attention."""
    steps: int = 0
    """replace_one: optimiser updates given to each replacement."""
    model: str
    """Name of the measured model."""
    layout: str
    """Its layout, printed."""
    scores: tuple[LayerScore, ...]
    """One entry a measured layer, in any order."""

    def ranked(self) -> tuple[LayerScore, ...]:
        """List the scores, least important first; equal scores in the order of their layers."""
        return tuple(sorted(self.scores, key=lambda entry: (entry.score, entry.layer)))

    def least(self, num_layers: int) -> tuple[int, ...]:
        """Name the `num_layers` least important layers, in the order of the ranking.

        Raises:
            ModelError: more layers asked for than were measured.
        """
        if not 0 <= num_layers <= len(self.scores):
            raise ModelError(
                f"the {num_layers} least important layers were asked for, but {self.method} of "
                f"{self.model} has {len(self.scores)} scores. Measure more layers or convert fewer."
            )
        return tuple(entry.layer for entry in self.ranked()[:num_layers])

    def rank_correlation(self) -> float | None:
        """Correlate (Spearman) the ranks before and after the short distillation.

        Returns None where scores before it are missing, or where all of a side are equal.
        """
        pairs = [(s.score_before, s.score) for s in self.scores if s.score_before is not None]
        if len(pairs) < max(2, len(self.scores)):
            return None
        return spearman([before for before, _ in pairs], [after for _, after in pairs])

    def table(self) -> str:
        """Print the ranking as text, least important first."""
        lines = ["rank  layer       score  std. error      before"]
        for rank, entry in enumerate(self.ranked(), start=1):
            cells = (entry.score, entry.standard_error, entry.score_before)
            printed = "".join(f"{_cell(value):>12}" for value in cells)
            lines.append(f"{rank:>4}  {entry.layer:>5}{printed}")
        return "\n".join(lines)

    def __str__(self) -> str:
        tokens, seconds = (
            sum(getattr(entry, name) for entry in self.scores) for name in ("tokens", "seconds")
        )
        head = (
            f"{self.method} ({self.metric}) of {self.model}  {self.layout}  "
            f"{short_count(tokens)} tokens, {short_seconds(seconds)}, least important first"
        )
        correlation = self.rank_correlation()
        if correlation is not None:
            head += f"; ranks before and after correlate at {correlation:.2f} (Spearman)"
        return f"{head}\n{self.table()}"

    __repr__ = __str__

    def to_json(self) -> dict[str, Any]:
        """Return the plain value that `from_json` reads back."""
        value: dict[str, Any] = plain(self)
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Importance":
        """Read what `to_json` wrote.

        Raises:
            RunError: a key is missing or not known.
        """
        try:
            scores = tuple(LayerScore(**entry) for entry in value["scores"])
            return cls(**{**value, "scores": scores})
        except (KeyError, TypeError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise RunError(f"not an importance file ({error}); its keys are {names}.") from error

    def save(self, path: Path | str) -> None:
        """Write the JSON form to `path`, whole or not at all."""
        write_json(path, self)

    @classmethod
    def load(cls, path: Path | str) -> "Importance":
        """Read the JSON form from `path`.

        Raises:
            RunError: no such file, or not an importance file.
        """
        return cls.from_json(read_json(path))


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Correlate two series by their ranks; equal values share their mean rank.

    Returns None where one of the series is constant, as the correlation is then undefined.
    """
    ranks = [_ranks(first), _ranks(second)]
    centre = (len(first) - 1) / 2
    products = [
        sum((a - centre) * (b - centre) for a, b in zip(one, other, strict=True))
        for one, other in ((ranks[0], ranks[1]), (ranks[0], ranks[0]), (ranks[1], ranks[1]))
    ]
    scale = float((products[1] * products[2]) ** 0.5)
    return None if scale == 0 else products[0] / scale


def _ranks(values: Sequence[float]) -> list[float]:
    ranks = [0.0] * len(values)
    order = sorted(range(len(values)), key=values.__getitem__)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for position in order[start:stop]:
            ranks[position] = (start + stop - 1) / 2
        start = stop
    return ranks


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
