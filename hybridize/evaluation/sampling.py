"""How answers are drawn: Sampling, and draws whose seed is that of the problem, not of the batch.

Legend: B rows, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from hybridize.core.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is drawn, and how many of each problem."""

    max_new_tokens: int = 192
    """Token limit of one answer; an answer not closed by then is wrong."""
    temperature: float = 0.0
    """0 takes the most likely token each time."""
    top_p: float = 1.0
    """Share of the probability to draw from, the most likely tokens first."""
    samples: int = 1
    """Answers drawn to each problem: k of pass@k and of the majority vote."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise RecipeError(
                f"sampling with samples {self.samples}, temperature {self.temperature}, top_p "
                f"{self.top_p}: samples start at 1, temperature at 0, top_p lies in (0, 1]."
            )
        if self.samples > 1 and self.temperature == 0:
            raise RecipeError(
                f"{self.samples} samples at temperature 0 are all the same. "
                "Set a temperature, such as 0.6."
            )

    def seed_of(self, prompt: str, sample: int) -> int:
        """Return the seed of one draw: the same in whatever batch and order it is made."""
        text = f"{self.seed}/{sample}/{prompt}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


class Draw(LogitsProcessor):
    """Adds the noise that makes the most likely token a draw (the Gumbel-max trick).

    Each row has its own generator, so that a draw does not depend on the rows beside it.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        """Take one seed a row."""
        self._sampling = sampling
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) whose largest entry is the token drawn."""
        logits_BV = scores.float() / self._sampling.temperature
        if self._sampling.top_p < 1:
            logits_BV = keep_likely(logits_BV, self._sampling.top_p)
        size = logits_BV.shape[-1]
        noise_BV = torch.stack(
            [torch.empty(size).exponential_(generator=one) for one in self._generators]
        )
        return logits_BV - noise_BV.log().to(logits_BV.device)


def keep_likely(logits_BV: Tensor, top_p: float) -> Tensor:
    """Return the logits with -inf for all but the most likely tokens that hold `top_p` together."""
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True)
    shares_BV = sorted_BV.softmax(-1)
    beyond_BV = shares_BV.cumsum(-1) - shares_BV >= top_p
    return logits_BV.masked_fill(beyond_BV.gather(-1, order_BV.argsort(-1)), float("-inf"))
