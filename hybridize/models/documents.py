"""Attention over the documents of packed rows, each alone.

Legend: B rows, T tokens of a row, N tokens of all rows, M documents, L tokens of the longest of
them, D model width, H query heads, G key and value heads, K head width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from hybridize.ops import packed_attention
from hybridize.ops.packed_attention.chunked import packed_attention_chunked
from hybridize.ops.packed_attention.documents import DocumentGroups, Rope

EXACT = (torch.float32, torch.float64)
"""Precisions whose attention may run compiled; others keep to PyTorch's own."""


@dataclass(frozen=True)
class Documents:
    """What attention over documents needs: where they are, and the rope of one of them."""

    groups: DocumentGroups
    rope: Rope
    """Cosines and sines of the positions 0 to `groups.longest` - 1, (1, L, K) each."""


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
    scaling: float,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend within each document, as an attention function of transformers; (B, T, H, K).

    Unlike `attend_documents` it leaves the projections to the rows as they are: fewer and larger
    products, and none of padding.
    """
    shape = query_BHTK.transpose(1, 2).shape
    q_NHK, k_NGK, v_NGK = (
        x_BHTK.transpose(1, 2).flatten(0, 1) for x_BHTK in (query_BHTK, key_BHTK, value_BHTK)
    )
    groups = documents.groups
    if dropout:
        mixed_NHK = packed_attention_chunked(
            q_NHK, k_NGK, v_NGK, groups, scale=scaling, dropout=dropout
        )
    else:
        exact = value_BHTK.dtype in EXACT and not torch.compiler.is_compiling()
        form = "auto" if exact else "chunked"
        mixed_NHK = packed_attention(q_NHK, k_NGK, v_NGK, groups, scale=scaling, form=form)
    return mixed_NHK.view(shape), None


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
