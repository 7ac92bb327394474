"""What rounding its weights does to a model's next tokens: KL to itself as it was, and top-1.

Legend: T tokens, N counted places, D model width, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hybridize.core.errors import ModelError
from hybridize.models.hybrid import HybridForCausalLM

LOGITS_AT_ONCE = 2**24
"""Logits compared at a time, for the sake of memory."""


class Row(Protocol):
    """A row of packed documents, as `hybridize.training.data` makes them."""

    @property
    def input_ids_T(self) -> Tensor:
        """Tokens."""

    @property
    def segments_T(self) -> Tensor:
        """Number of the document each token belongs to; 0 is padding."""

    @property
    def loss_mask_T(self) -> Tensor:
        """Whether the prediction of a token counts."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How far a model with rounded weights is from the same model without, on the same text."""

    kl: float
    """KL(unquantised || quantised) of the whole next-token distribution, nats per token."""
    kl_error: float | None
    """Standard error, from the spread between documents; None where there is one document."""
    top1: float
    """Share of places where both find the same token most likely."""
    top1_error: float | None
    tokens: int
    """Places compared: the tokens that training would count."""
    documents: int


@torch.no_grad()
def measure_rounding(
    whole: HybridForCausalLM, rounded: HybridForCausalLM, rows: Iterable[Row]
) -> Rounding:
    """Compare a model with its quantised copy on packed text.

    Raises:
        ModelError: the text has no token that counts.
    """
    sums: list[Tensor] = []
    counts: list[int] = []
    for row in rows:
        documents_N = row.segments_T[_counted_places(row) + 1]
        if not len(documents_N):
            continue
        found = torch.cat(list(_compare(whole, rounded, row)), dim=1)
        for document in documents_N.unique():
            chosen_N = documents_N == document
            sums.append(found[:, chosen_N].sum(dim=1))
            counts.append(int(chosen_N.sum()))
    if not counts:
        raise ModelError("no token of the held-out text counts. Give text with completions.")
    sums_D2, counts_D1 = torch.stack(sums), torch.tensor(counts, dtype=torch.float64)[:, None]
    total = counts_D1.sum()
    mean_2 = sums_D2.sum(0) / total
    kl, top1 = mean_2.tolist()
    errors: list[float | None] = [None, None]
    if len(counts) > 1:
        # That of a ratio whose parts vary between documents.
        factor = len(counts) / (len(counts) - 1)
        spread_2 = (sums_D2 - mean_2 * counts_D1).square().sum(0) * factor
        errors = (spread_2.sqrt() / total).tolist()
    return Rounding(
        kl=kl,
        kl_error=errors[0],
        top1=top1,
        top1_error=errors[1],
        tokens=int(total),
        documents=len(counts),
    )


def _counted_places(row: Row) -> Tensor:
    """Return the places whose next token counts."""
    return row.loss_mask_T[1:].nonzero()[:, 0]


def _compare(whole: HybridForCausalLM, rounded: HybridForCausalLM, row: Row) -> Iterator[Tensor]:
    """Yield KL and whether the top token is the same, (2, some of N), place by place."""
    places_N = _counted_places(row)
    hidden_ND = [
        network.hidden(
            row.input_ids_T[None].to(network.device), row.segments_T[None].to(network.device)
        )[0, places_N.to(network.device)]
        for network in (whole, rounded)
    ]
    step = max(1, LOGITS_AT_ONCE // whole.config.vocab_size)
    for first in range(0, len(places_N), step):
        p_NV, q_NV = (
            network.lm_head(states_ND[first : first + step]).cpu().double().log_softmax(-1)
            for network, states_ND in zip((whole, rounded), hidden_ND, strict=True)
        )
        kl_N = (p_NV.exp() * (p_NV - q_NV)).sum(-1)
        if not math.isfinite(float(kl_N.sum())):
            raise ModelError("the quantised model answers with numbers that are none.")
        yield torch.stack([kl_N, (p_NV.argmax(-1) == q_NV.argmax(-1)).double()])
