"""Causal attention over the documents of packed rows, each alone.

Legend: N tokens of all rows, H query heads, G key and value heads, K channels per head, L tokens of
the longest document.

A row of 1,024 tokens that holds ten documents needs a tenth of the scores that a row-wide mask
computes and throws away.
"""

from torch import Tensor

from hybridize.ops.forms import Form, choose
from hybridize.ops.packed_attention.documents import DocumentGroups, Rope

FORMS = {
    "compiled": Form(
        place="hybridize.ops.packed_attention.compiled:packed_attention_compiled",
        devices=("cpu",),
        obstacle="hybridize.ops.packed_attention.compiled:find_obstacle",
        speedup=3,
    ),
    "chunked": Form(place="hybridize.ops.packed_attention.chunked:packed_attention_chunked"),
    "reference": Form(place="hybridize.ops.packed_attention.reference:packed_attention_reference"),
}
"""The fastest first."""


def packed_attention(
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    documents: DocumentGroups,
    *,
    scale: float,
    rope: Rope | None = None,
    form: str = "auto",
) -> Tensor:
    """Return softmax(scale q k) v, each token over those of its document up to itself, (N, H, K).

    Args:
        q_NHK: queries of the tokens of all rows, one row after the other.
        k_NGK: keys; H / G neighbouring query heads share one.
        v_NGK: values.
        documents: see `group_documents`; what belongs to none gets zeros.
        scale: factor of the scores.
        rope: cosines and sines of positions in a document, (L, K) each, by which queries and keys
            are turned first (Su et al. 2021, arXiv 2104.09864); None turns nothing.
        form: a name in FORMS, or "auto" for the fastest that can run; see `hybridize.ops.forms`.
    """
    run = choose("packed_attention", FORMS, form, device=q_NHK.device, num_tokens=len(q_NHK))
    return run(q_NHK, k_NGK, v_NGK, documents, scale=scale, rope=rope)
