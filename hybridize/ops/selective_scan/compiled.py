"""The recurrence of Mamba in C++: a vector of channels at a time, no state kept for most tokens.

Legend: B batch, T tokens, D channels, G groups of channels that share B and C, N state size per
channel, S slabs of channels of one group.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridize.ops import native
from hybridize.ops.segments import get_compute_dtype

KERNEL = Path(__file__).with_name("kernel.cpp")
SLAB = 256
"""Channels of a group for which the kernel sums gradients of B and C; it says the same."""


def find_obstacle(device: torch.device) -> str | None:
    """Say why this form cannot run on the device, or return None."""
    return native.find_obstacle(KERNEL, device)


def selective_scan_compiled(
    x_BTD: Tensor,
    dt_BTD: Tensor,
    A_DN: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_D: Tensor | None,
    *,
    segments_BT: Tensor | None = None,
    state_BDN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `hybridize.ops.selective_scan.selective_scan`; outputs at padding are 0."""
    dtype = get_compute_dtype(x_BTD.dtype)
    if state_BDN is None:
        state_BDN = x_BTD.new_zeros(x_BTD.shape[0], *A_DN.shape)
    y_BTD, last_BND = _Scan.apply(
        native.lay_out(x_BTD, dtype),
        native.lay_out(dt_BTD, dtype),
        A_DN.to(dtype).T.contiguous(),
        native.lay_out(B_BTGN, dtype, 2),
        native.lay_out(C_BTGN, dtype, 2),
        None if D_D is None else D_D.to(dtype).contiguous(),
        None if segments_BT is None else segments_BT.long().contiguous(),
        state_BDN.to(dtype).transpose(1, 2).contiguous(),
    )
    return y_BTD.to(x_BTD.dtype), last_BND.transpose(1, 2).contiguous()


class _Scan(torch.autograd.Function):
    """The kernel and its gradient."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        x_BTD, *_, state_BND = inputs
        assert x_BTD is not None and state_BND is not None
        y_BTD, last_BND = x_BTD.new_empty(x_BTD.shape), torch.empty_like(state_BND)
        ctx.save_for_backward(*inputs)
        outputs = (y_BTD, last_BND, *[None] * 9)
        native.call(KERNEL, "forward", x_BTD.dtype, *_list_inputs(*inputs), *outputs)
        return y_BTD, last_BND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Activation checkpointing gives saved tensors out once.
        inputs = ctx.saved_tensors
        x_BTD, _, _, B_BTGN, _, D_D, _, state_BND = inputs
        grad_x_BTD, grad_dt_BTD = x_BTD.new_empty(2, *x_BTD.shape).unbind()
        grad_A_BND, grad_state_BND = x_BTD.new_empty(2, *state_BND.shape).unbind()
        num_slabs = _count_slabs(x_BTD, B_BTGN)
        grad_B_SBTGN, grad_C_SBTGN = x_BTD.new_empty(2, num_slabs, *B_BTGN.shape).unbind()
        grad_D_BD = x_BTD.new_empty(x_BTD.shape[0], x_BTD.shape[2])
        native.call(
            KERNEL,
            "backward",
            x_BTD.dtype,
            *_list_inputs(*inputs),
            *(None, None),
            *(grad.contiguous() for grad in grads),
            *(grad_x_BTD, grad_dt_BTD, grad_A_BND, grad_B_SBTGN, grad_C_SBTGN),
            *(grad_D_BD, grad_state_BND),
        )
        grad_D_D = None if D_D is None else grad_D_BD.sum(0)
        return (
            *(grad_x_BTD, grad_dt_BTD, grad_A_BND.sum(0)),
            *(grad_SBTGN.sum(0) for grad_SBTGN in (grad_B_SBTGN, grad_C_SBTGN)),
            *(grad_D_D, None, grad_state_BND),
        )


def _count_slabs(x_BTD: Tensor, B_BTGN: Tensor) -> int:
    return -(-(x_BTD.shape[2] // B_BTGN.shape[2]) // SLAB)


def _list_inputs(*inputs: Any) -> tuple[Tensor | int | None, ...]:
    """List the first members of the kernel's struct."""
    x_BTD, dt_BTD, A_ND, B_BTGN, C_BTGN, D_D, segments_BT, state_BND = inputs
    sizes = (*x_BTD.shape, *B_BTGN.shape[2:], _count_slabs(x_BTD, B_BTGN))
    return (
        *(*sizes, torch.get_num_threads(), segments_BT),
        *(x_BTD, *x_BTD.stride()[:2], dt_BTD, *dt_BTD.stride()[:2], A_ND),
        *(B_BTGN, *B_BTGN.stride()[:2], C_BTGN, *C_BTGN.stride()[:2], D_D, state_BND),
    )
