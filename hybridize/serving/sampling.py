"""Drawing the next token of each request from its own logits, by its own random numbers.

Legend: T tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How tokens are drawn."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token, the first of several."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this share of the probability."""
    top_k: int | None = None
    """Only so many of the likeliest tokens; None is all."""
    seed: int | None = None
    """Of the draws; None takes another each time."""
    logprobs: int | None = None
    """How many likely tokens to report at each place; None reports nothing."""

    def make_generator(self) -> torch.Generator | None:
        """Return the random numbers of one request; None where there is nothing to draw."""
        if self.temperature == 0:
            return None
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One token."""

    token: int
    logprob: float | None
    """Of the token, in nats, before temperature and cuts; None where not asked for."""
    likely: tuple[tuple[int, float], ...]
    """The likeliest tokens and their logprobs."""


def draw(logits_V: Tensor, how: Drawing, generator: torch.Generator | None) -> Drawn:
    """Draw one token; softmax and logprobs are computed in float32, on the CPU."""
    logits_V = logits_V.float().cpu()
    if generator is None:
        token = int(logits_V.argmax())
    else:
        token = _sample(logits_V / how.temperature, how, generator)
    return tell(logits_V[None], [token], how)[0]


def tell(logits_TV: Tensor, tokens: Sequence[int], how: Drawing) -> list[Drawn]:
    """Report tokens with their logprobs, if asked for, each by the logits before it."""
    if how.logprobs is None:
        return [Drawn(token=token, logprob=None, likely=()) for token in tokens]
    logprobs_TV = torch.log_softmax(logits_TV.float().cpu(), dim=-1)
    best = logprobs_TV.topk(min(how.logprobs, logprobs_TV.shape[-1]))
    rows = zip(tokens, logprobs_TV, best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        Drawn(
            token=token,
            logprob=float(logprobs_V[token]),
            likely=tuple(zip(places, values, strict=True)),
        )
        for token, logprobs_V, places, values in rows
    ]


def _sample(logits_V: Tensor, how: Drawing, generator: torch.Generator) -> int:
    sorted_V, order_V = logits_V.sort(descending=True, stable=True)
    shares_V = torch.softmax(sorted_V, dim=-1)
    if how.top_k is not None:
        shares_V[how.top_k :] = 0
    # A token stays if those before it have not reached the share yet: the first always does.
    before_V = shares_V.cumsum(0) - shares_V
    shares_V = torch.where(before_V < how.top_p * shares_V.sum(), shares_V, 0)
    return int(order_V[torch.multinomial(shares_V, 1, generator=generator)])
