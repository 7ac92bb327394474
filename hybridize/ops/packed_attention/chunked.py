"""Attention within documents by PyTorch's own, documents of like length at once and unmasked.

Legend: N tokens of all rows, M documents of a group, L tokens of the longest of them, H query
heads, G key and value heads, K channels per head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridize.ops.packed_attention.documents import DocumentGroups, Rope, rotate


def packed_attention_chunked(
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    documents: DocumentGroups,
    *,
    scale: float,
    rope: Rope | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """See `hybridize.ops.packed_attention.packed_attention`; `dropout` is of the shares."""
    mixed: list[Tensor] = []
    for places_ML in documents.places:
        found_MHLK = F.scaled_dot_product_attention(
            rotate(q_NHK[places_ML], rope).transpose(1, 2),
            rotate(k_NGK[places_ML], rope).transpose(1, 2),
            v_NGK[places_ML].transpose(1, 2),
            dropout_p=dropout,
            is_causal=True,
            scale=scale,
            enable_gqa=q_NHK.shape[1] != k_NGK.shape[1],
        )
        mixed.append(found_MHLK.transpose(1, 2).flatten(0, 1))
    mixed.append(q_NHK.new_zeros(1, *q_NHK.shape[1:]))
    return torch.cat(mixed)[documents.home_N]
