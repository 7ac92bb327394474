"""Attention over the documents of packed rows, each alone, batched with others of like length.

Legend: B rows, T tokens of a row, N tokens of all rows, M documents, L tokens of the longest of
them, D model width, H heads, K head width, S places of all groups together.

A row of 1,024 tokens that holds ten documents needs a tenth of the scores that a row-wide mask
computes and throws away; and without a mask, attention takes its fastest causal path.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

Rope = tuple[Tensor, Tensor]
"""Cosines and sines of positions."""

SHORTEST_SHARE = 0.75
"""A document joins a group if it is at least this share as long as the group's longest."""


@dataclass(frozen=True)
class DocumentGroups:
    """The documents of a batch of rows, in groups of like length."""

    places: tuple[Tensor, ...]
    """Of each group, the place of each token in the flattened batch, (M, L); what is beyond the end
    of a document repeats its last place."""
    home_N: Tensor
    """Of each token of the flattened batch, its place among all S; S itself for padding."""
    longest: int
    """Tokens of the longest document."""


@dataclass(frozen=True)
class Documents:
    """What attention over documents needs: where they are, and the rope of one of them."""

    groups: DocumentGroups
    rope: Rope
    """Cosines and sines of the positions 0 to `groups.longest` - 1, (1, L, K) each."""


def group_documents(segments_BT: Tensor) -> DocumentGroups:
    """Find the documents of packed rows: runs of equal numbers above 0."""
    num_tokens = segments_BT.shape[1]
    flat_N = segments_BT.flatten()
    index_N = torch.arange(len(flat_N), device=flat_N.device)
    is_start_N = index_N % num_tokens == 0
    is_start_N[1:] |= flat_N[1:] != flat_N[:-1]
    starts_R = is_start_N.nonzero()[:, 0]
    ends_R = torch.cat([starts_R[1:], starts_R.new_tensor([len(flat_N)])])
    real_R = flat_N[starts_R] > 0
    starts_R, lengths_R = starts_R[real_R], (ends_R - starts_R)[real_R]
    order_R = lengths_R.argsort(descending=True, stable=True)
    starts_R, lengths_R = starts_R[order_R], lengths_R[order_R]

    places: list[Tensor] = []
    home_N = torch.full_like(flat_N, -1)
    offset = 0
    for group in _split(lengths_R.tolist()):
        longest = int(lengths_R[group.start])
        steps_L = torch.arange(longest, device=flat_N.device)
        inside_ML = torch.minimum(steps_L, lengths_R[group, None] - 1)
        places_ML = starts_R[group, None] + inside_ML
        real_ML = steps_L < lengths_R[group, None]
        home_N[places_ML[real_ML]] = offset + real_ML.flatten().nonzero()[:, 0]
        offset += places_ML.numel()
        places.append(places_ML)
    home_N[home_N < 0] = offset
    return DocumentGroups(tuple(places), home_N, int(lengths_R[0]) if len(lengths_R) else 0)


def attend_documents(
    attend: Callable[[Tensor, Rope], Tensor], hidden_BTD: Tensor, documents: Documents
) -> Tensor:
    """Run an attention on every document alone; padding gets zeros, (B, T, D).

    Args:
        attend: called with documents as rows, (M, L, D), padded behind their ends, and the rope of
            their positions; returns (M, L, D).
    """
    groups, (cos_1LK, sin_1LK) = documents.groups, documents.rope
    flat_ND = hidden_BTD.flatten(0, 1)
    mixed: list[Tensor] = []
    for places_ML in groups.places:
        length = places_ML.shape[1]
        rope = (cos_1LK[:, :length], sin_1LK[:, :length])
        mixed.append(attend(flat_ND[places_ML], rope).flatten(0, 1))
    mixed.append(flat_ND.new_zeros(1, flat_ND.shape[1]))
    return torch.cat(mixed)[groups.home_N].view_as(hidden_BTD)


def attend_apart(
    module: nn.Module,
    query_BHTK: Tensor,
    key_BHTK: Tensor,
    value_BHTK: Tensor,
    attention_mask: None,
    *,
    documents: Documents,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend within each document, as an attention function of transformers; (B, T, H, K).

    Unlike `attend_documents` it leaves the projections to the rows as they are: fewer and larger
    products, and none of padding.
    """
    shape = query_BHTK.transpose(1, 2).shape
    rows = [x.transpose(1, 2).flatten(0, 1) for x in (query_BHTK, key_BHTK, value_BHTK)]
    mixed: list[Tensor] = []
    for places_ML in documents.groups.places:
        query, key, value = (x_NHK[places_ML].transpose(1, 2) for x_NHK in rows)
        mixed_MLHK, _ = sdpa_attention_forward(module, query, key, value, None, **options)
        mixed.append(mixed_MLHK.flatten(0, 1))
    mixed.append(rows[0].new_zeros(1, *shape[2:]))
    return torch.cat(mixed)[documents.groups.home_N].view(shape), None


AttentionInterface.register("apart", attend_apart)


@contextmanager
def attending_apart(config: Any) -> Iterator[None]:
    """Let the attention modules of a model call `attend_apart`, for the time of a `with` block."""
    before = config._attn_implementation
    config._attn_implementation = "apart"
    try:
        yield
    finally:
        config._attn_implementation = before


def restart_positions(segments_BT: Tensor) -> Tensor:
    """Count positions from 0 in each run of equal document numbers, (B, T)."""
    index_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    starts_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    starts_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return index_T - torch.where(starts_BT, index_T, 0).cummax(dim=1).values


def _split(lengths: Sequence[int]) -> list[slice]:
    """Cut descending lengths into groups whose shortest is not much shorter than the longest."""
    groups: list[slice] = []
    first = 0
    for place in range(1, len(lengths) + 1):
        if place == len(lengths) or lengths[place] < SHORTEST_SHARE * lengths[first]:
            groups.append(slice(first, place))
            first = place
    return groups if lengths else []
