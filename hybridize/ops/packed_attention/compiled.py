"""Attention within documents in C++: what is kept are its inputs, where projections left them.

Legend: N tokens of all rows, H query heads, G key and value heads, K channels per head.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridize.ops import native
from hybridize.ops.packed_attention.documents import DocumentGroups, Rope
from hybridize.ops.segments import get_compute_dtype

KERNEL = Path(__file__).with_name("kernel.cpp")


def find_obstacle(device: torch.device) -> str | None:
    """Say why this form cannot run on the device, or return None."""
    return native.find_obstacle(KERNEL, device)


def packed_attention_compiled(
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    documents: DocumentGroups,
    *,
    scale: float,
    rope: Rope | None = None,
) -> Tensor:
    """See `hybridize.ops.packed_attention.packed_attention`; computed in float32 or float64."""
    dtype = get_compute_dtype(q_NHK.dtype)
    cos_LK, sin_LK = (None, None) if rope is None else (native.fit(x, dtype) for x in rope)
    inputs = (native.lay_out(x, dtype, 2) for x in (q_NHK, k_NGK, v_NGK))
    out_NHK: Tensor = _Attention.apply(*inputs, cos_LK, sin_LK, documents, scale)
    return out_NHK.to(q_NHK.dtype)


class _Attention(torch.autograd.Function):
    """The kernel and its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        q_NHK: Tensor,
        k_NGK: Tensor,
        v_NGK: Tensor,
        cos_LK: Tensor | None,
        sin_LK: Tensor | None,
        documents: DocumentGroups,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(q_NHK, k_NGK, v_NGK, cos_LK, sin_LK)
        ctx.documents, ctx.scale = documents, scale
        out_NHK = q_NHK.new_empty(q_NHK.shape)
        inputs = _list_inputs(documents, scale, q_NHK, k_NGK, v_NGK, cos_LK, sin_LK)
        native.call(KERNEL, "forward", q_NHK.dtype, *inputs, out_NHK)
        return out_NHK.index_fill_(0, documents.padding, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, documents = ctx.saved_tensors, ctx.documents
        made = [x.new_empty(x.shape) for x in inputs[:3]]
        native.call(
            KERNEL,
            "backward",
            inputs[0].dtype,
            *_list_inputs(documents, ctx.scale, *inputs),
            *(None, grads[0].contiguous(), *made),
        )
        return (*(x.index_fill_(0, documents.padding, 0) for x in made), None, None, None, None)


def _list_inputs(
    documents: DocumentGroups, scale: float, *inputs: Any
) -> tuple[Tensor | int | float | None, ...]:
    """List the first members of the kernel's struct."""
    q_NHK, k_NGK, v_NGK, cos_LK, sin_LK = inputs
    starts_M, lengths_M = documents.starts_M, documents.lengths_M
    sizes = (len(starts_M), q_NHK.shape[1], *k_NGK.shape[1:], torch.get_num_threads())
    strided = ((x, x.stride(0)) for x in (q_NHK, k_NGK, v_NGK))
    return (
        *(*sizes, starts_M, lengths_M),
        *(value for pair in strided for value in pair),
        *(cos_LK, sin_LK, float(scale)),
    )
