"""The recurrence of Mamba-2 in C++: pieces of up to 64 tokens, each worked on inside the cache.

Legend: B batch, T tokens, H heads, P channels per head, G groups of heads that share B and C, N
state size.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridize.ops import native
from hybridize.ops.segments import get_compute_dtype

KERNEL = Path(__file__).with_name("kernel.cpp")


def find_obstacle(device: torch.device) -> str | None:
    """Say why this form cannot run on the device, or return None."""
    return native.find_obstacle(KERNEL, device)


def ssd_compiled(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor | None,
    *,
    segments_BT: Tensor | None = None,
    state_BHPN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `hybridize.ops.ssd.ssd`; outputs at padding are 0."""
    dtype = get_compute_dtype(x_BTHP.dtype)
    if state_BHPN is None:
        state_BHPN = x_BTHP.new_zeros(*x_BTHP[:, 0].shape, B_BTGN.shape[-1])
    y_BTHP, last_BHPN = _Ssd.apply(
        native.lay_out(x_BTHP, dtype, 2),
        dt_BTH.to(dtype).contiguous(),
        A_H.to(dtype).contiguous(),
        native.lay_out(B_BTGN, dtype, 2),
        native.lay_out(C_BTGN, dtype, 2),
        None if D_H is None else D_H.to(dtype).contiguous(),
        None if segments_BT is None else segments_BT.long().contiguous(),
        state_BHPN.to(dtype).contiguous(),
    )
    return y_BTHP.to(x_BTHP.dtype), last_BHPN


class _Ssd(torch.autograd.Function):
    """The kernel and its gradient."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        x_BTHP, *_, state_BHPN = inputs
        assert x_BTHP is not None and state_BHPN is not None
        y_BTHP, last_BHPN = x_BTHP.new_empty(x_BTHP.shape), x_BTHP.new_empty(state_BHPN.shape)
        ctx.save_for_backward(*inputs)
        native.call(KERNEL, "forward", x_BTHP.dtype, *_list_inputs(*inputs), y_BTHP, last_BHPN)
        return y_BTHP, last_BHPN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Activation checkpointing gives saved tensors out once.
        inputs = ctx.saved_tensors
        x_BTHP, dt_BTH, _, B_BTGN, _, D_H, _, state_BHPN = inputs
        grad_x_BTHP, grad_dt_BTH = x_BTHP.new_empty(x_BTHP.shape), x_BTHP.new_empty(dt_BTH.shape)
        grad_A_BH, grad_D_BH = x_BTHP.new_empty(2, x_BTHP.shape[0], x_BTHP.shape[2]).unbind()
        grad_B_BTGN, grad_C_BTGN = x_BTHP.new_empty(2, *B_BTGN.shape).unbind()
        grad_state_BHPN = x_BTHP.new_empty(state_BHPN.shape)
        native.call(
            KERNEL,
            "backward",
            x_BTHP.dtype,
            *_list_inputs(*inputs),
            *(None, None),
            *(grad.contiguous() for grad in grads),
            *(grad_x_BTHP, grad_dt_BTH, grad_A_BH, grad_B_BTGN, grad_C_BTGN),
            *(grad_D_BH, grad_state_BHPN),
        )
        grad_D_H = None if D_H is None else grad_D_BH.sum(0)
        return (
            *(grad_x_BTHP, grad_dt_BTH, grad_A_BH.sum(0), grad_B_BTGN, grad_C_BTGN, grad_D_H),
            *(None, grad_state_BHPN),
        )


def _list_inputs(*inputs: Any) -> tuple[Tensor | int | None, ...]:
    """List the first members of the kernel's struct."""
    x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, D_H, segments_BT, state_BHPN = inputs
    return (
        *(*x_BTHP.shape, *B_BTGN.shape[2:], torch.get_num_threads(), segments_BT),
        *(x_BTHP, *x_BTHP.stride()[:2], dt_BTH, A_H),
        *(B_BTGN, *B_BTGN.stride()[:2], C_BTGN, *C_BTGN.stride()[:2], D_H, state_BHPN),
    )
