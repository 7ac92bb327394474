"""Attention within documents, one after the other: the definition of correct.

Legend: N tokens of all rows, H query heads, G key and value heads, K channels per head, L tokens of
a document.
"""

import torch
from torch import Tensor

from hybridize.ops.packed_attention.documents import DocumentGroups, Rope, rotate


def packed_attention_reference(
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    documents: DocumentGroups,
    *,
    scale: float,
    rope: Rope | None = None,
) -> Tensor:
    """See `hybridize.ops.packed_attention.packed_attention`."""
    mixed_NHK = torch.zeros_like(q_NHK)
    shared = q_NHK.shape[1] // k_NGK.shape[1]
    for start, length in torch.stack([documents.starts_M, documents.lengths_M], 1).tolist():
        places_L = torch.arange(start, start + length, device=q_NHK.device)
        q_LHK = rotate(q_NHK[places_L], rope)
        k_LHK = rotate(k_NGK[places_L], rope).repeat_interleave(shared, dim=1)
        v_LHK = v_NGK[places_L].repeat_interleave(shared, dim=1)
        scores_HLL = torch.einsum("ihk,jhk->hij", q_LHK, k_LHK) * scale
        later_LL = places_L > places_L[:, None]
        shares_HLL = scores_HLL.masked_fill(later_LL, -torch.inf).softmax(-1)
        mixed_LHK = torch.einsum("hij,jhk->ihk", shares_HLL, v_LHK)
        mixed_NHK = mixed_NHK.index_copy(0, places_L, mixed_LHK)
    return mixed_NHK
