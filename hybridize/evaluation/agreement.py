"""How far a student's next tokens agree with its teacher's: KL and top-1, by position and entropy.

Legend: T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridize.core.errors import ModelError
from hybridize.evaluation.diagnosis import TOKENS_AT_ONCE, Document
from hybridize.models.hybrid import HybridForCausalLM

Logits = Callable[[slice], Tensor]
"""From places of a document to their logits (T, V)."""
FIRST_EDGE = 16
ENTROPY_EDGES = (0.01, 0.1, 1.0, 2.0, math.inf)
"""Places are grouped by the least of these that the teacher's entropy (nats) stays below."""
PROMPT, COMPLETION = "prompt", "completion"


@dataclass(frozen=True, kw_only=True)
class Agreed:
    """The mean over the tokens of one group."""

    by: str
    """prompt and completion: all their tokens. Of completions: position (less than so many tokens
    before it), entropy (of the teacher, below)."""
    value: float | None
    """None for prompt and completion, and for the highest entropies."""
    tokens: int
    forward_kl: float
    """KL(teacher || student), nats per token."""
    forward_kl_error: float | None
    """Standard error, from the spread between documents; None where there is one document."""
    reverse_kl: float
    """KL(student || teacher), nats per token."""
    reverse_kl_error: float | None
    top1: float
    """Share of places where both find the same token most likely."""
    top1_error: float | None


@torch.no_grad()
def measure_agreement(teacher: Any, student: Any, documents: Iterable[Document]) -> list[Agreed]:
    """Compare two models on documents, each read alone from its first token.

    Args:
        teacher: any causal language model of transformers' interface, as `student`.
        documents: with the number of tokens of their prompts. Prompts are not trained on, so that
            only completions are looked at more closely.

    Raises:
        ModelError: the two have different vocabularies.
    """
    sums: dict[tuple[str, float | None], list[tuple[Tensor, int]]] = {}
    for document in documents:
        ids_1T = torch.tensor([list(document.ids)])
        values_4T = _compare(
            _find_logits(teacher, ids_1T), _find_logits(student, ids_1T), ids_1T.shape[1] - 1
        )
        places_T = torch.arange(values_4T.shape[1])  # nothing follows the last token
        for key, chosen_T in _groups(places_T, values_4T[3], document.prompt_tokens).items():
            count = int(chosen_T.sum())
            if count:
                part = values_4T[:3, chosen_T].sum(dim=1)
                sums.setdefault(key, []).append((part, count))
    order = sorted(sums, key=lambda key: (key[0], math.inf if key[1] is None else key[1]))
    return [_mean(key, sums[key]) for key in order]


def _find_logits(network: Any, ids_1T: Tensor) -> Logits:
    """Read a document; a class of ours makes the logits of those places alone that are asked."""
    ids_1T = ids_1T.to(network.device)
    if isinstance(network, HybridForCausalLM):
        hidden_TD = network.hidden(ids_1T)[0]
        return lambda places: network.lm_head(hidden_TD[places])
    logits_TV = network(input_ids=ids_1T).logits[0]
    return lambda places: logits_TV[places]


def _compare(teacher: Logits, student: Logits, num_places: int) -> Tensor:
    """Return forward KL, reverse KL, whether the top token is the same, the teacher's entropy."""
    parts = []
    for first in range(0, num_places, TOKENS_AT_ONCE):
        places = slice(first, min(first + TOKENS_AT_ONCE, num_places))
        p_TV, q_TV = (
            logits(places).cpu().double().log_softmax(-1) for logits in (teacher, student)
        )
        if p_TV.shape != q_TV.shape:
            raise ModelError(
                f"the models have vocabularies of {p_TV.shape[-1]} and {q_TV.shape[-1]} tokens. "
                "Compare a student with its own teacher."
            )
        gap_TV = p_TV - q_TV
        same_T = (p_TV.argmax(-1) == q_TV.argmax(-1)).double()
        forward_T, reverse_T = (p_TV.exp() * gap_TV).sum(-1), -(q_TV.exp() * gap_TV).sum(-1)
        entropy_T = -(p_TV.exp() * p_TV).sum(-1)
        parts.append(torch.stack([forward_T, reverse_T, same_T, entropy_T]))
    return torch.cat(parts, dim=1)


def _groups(
    places_T: Tensor, entropy_T: Tensor, prompt_tokens: int
) -> dict[tuple[str, float | None], Tensor]:
    """Return the groups of a document: (by, value) -> which of its tokens."""
    predicts_T = places_T >= prompt_tokens - 1
    found: dict[tuple[str, float | None], Tensor] = {
        (PROMPT, None): ~predicts_T,
        (COMPLETION, None): predicts_T,
    }
    low, high = 0, FIRST_EDGE
    while low <= int(places_T[-1]):
        found["position", float(high)] = predicts_T & (places_T >= low) & (places_T < high)
        low, high = high, 2 * high
    floor = -math.inf
    for edge in ENTROPY_EDGES:
        value = None if math.isinf(edge) else edge
        found["entropy", value] = predicts_T & (entropy_T >= floor) & (entropy_T < edge)
        floor = edge
    return found


def _mean(key: tuple[str, float | None], parts: Sequence[tuple[Tensor, int]]) -> Agreed:
    """Divide sums by counts; the error is that of a ratio whose parts vary between documents."""
    sums_N3 = torch.stack([part for part, _ in parts])
    counts_N1 = torch.tensor([[float(count)] for _, count in parts], dtype=torch.float64)
    total = counts_N1.sum()
    mean_3 = sums_N3.sum(0) / total
    factor = len(parts) / max(1, len(parts) - 1)
    error_3 = ((sums_N3 - mean_3 * counts_N1).square().sum(0) * factor).sqrt() / total
    forward, reverse, top1 = mean_3.tolist()
    errors = error_3.tolist() if len(parts) > 1 else [None] * 3
    return Agreed(
        by=key[0],
        value=key[1],
        tokens=int(total),
        forward_kl=forward,
        forward_kl_error=errors[0],
        reverse_kl=reverse,
        reverse_kl_error=errors[1],
        top1=top1,
        top1_error=errors[2],
    )
