"""The gated delta rule in C++: pieces of up to 32 tokens, each worked on inside the cache.

Legend: B batch, T tokens, H heads, P channels per value, G groups of heads that share queries and
keys, N channels per key, K places for states between pieces.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridize.ops import native
from hybridize.ops.segments import get_compute_dtype

KERNEL = Path(__file__).with_name("kernel.cpp")
PIECE = 32
"""Tokens of a piece, as in the kernel."""


def find_obstacle(device: torch.device) -> str | None:
    """Say why this form cannot run on the device, or return None."""
    return native.find_obstacle(KERNEL, device)


def gated_delta_rule_compiled(
    q_BTGN: Tensor,
    k_BTGN: Tensor,
    v_BTHP: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    *,
    segments_BT: Tensor | None = None,
    state_BHPN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `hybridize.ops.gated_delta_rule.gated_delta_rule`; outputs at padding are 0."""
    dtype = get_compute_dtype(v_BTHP.dtype)
    if state_BHPN is None:
        state_BHPN = v_BTHP.new_zeros(*v_BTHP[:, 0].shape, k_BTGN.shape[-1])
    y_BTHP, last_BHPN = _GatedDeltaRule.apply(
        None if segments_BT is None else segments_BT.long().contiguous(),
        *(native.lay_out(values, dtype, 2) for values in (q_BTGN, k_BTGN, v_BTHP)),
        *(values.to(dtype).contiguous() for values in (g_BTH, beta_BTH, state_BHPN)),
    )
    return y_BTHP.to(v_BTHP.dtype), last_BHPN


class _GatedDeltaRule(torch.autograd.Function):
    """The kernel and its gradient."""

    @staticmethod
    def forward(ctx: Any, segments_BT: Tensor | None, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        v_BTHP, state_BHPN = inputs[2], inputs[-1]
        found_BTHP = before_BHKNP = None
        if any(ctx.needs_input_grad):
            num_rows, num_heads, num_channels, num_states = state_BHPN.shape
            places = v_BTHP.shape[1] // PIECE + 1
            found_BTHP = v_BTHP.new_empty(v_BTHP.shape)
            before_BHKNP = v_BTHP.new_empty(num_rows, num_heads, places, num_states, num_channels)
        y_BTHP, last_BHPN = v_BTHP.new_empty(v_BTHP.shape), v_BTHP.new_empty(state_BHPN.shape)
        ctx.save_for_backward(segments_BT, *inputs, found_BTHP, before_BHKNP)
        native.call(
            KERNEL,
            "forward",
            v_BTHP.dtype,
            *_list_inputs(segments_BT, *inputs),
            *(found_BTHP, before_BHKNP, y_BTHP, last_BHPN),
        )
        return y_BTHP, last_BHPN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, found_BTHP, before_BHKNP = ctx.saved_tensors
        made = [found_BTHP.new_empty(tensor.shape) for tensor in inputs[1:]]
        native.call(
            KERNEL,
            "backward",
            found_BTHP.dtype,
            *_list_inputs(*inputs),
            *(found_BTHP, before_BHKNP, None, None),
            *(grad.contiguous() for grad in grads),
            *made,
        )
        return None, *made


def _list_inputs(segments_BT: Tensor | None, *inputs: Tensor) -> tuple[Tensor | int | None, ...]:
    """List the first members of the kernel's struct."""
    q_BTGN, k_BTGN, v_BTHP, *others = inputs
    strided = (
        word for tensor in (q_BTGN, k_BTGN, v_BTHP) for word in (tensor, *tensor.stride()[:2])
    )
    return (
        *(*v_BTHP.shape, *k_BTGN.shape[2:], torch.get_num_threads(), segments_BT),
        *strided,
        *others,
    )
