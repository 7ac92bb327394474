"""The causal convolution in C++: one pass over the row, forwards and backwards.

Legend: B batch, T tokens, D channels, W kept inputs (kernel width - 1), K = W + 1 taps.
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


def causal_conv_compiled(
    x_BTD: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None,
    *,
    segments_BT: Tensor | None = None,
    state_BDW: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `hybridize.ops.causal_conv.causal_conv`; outputs at padding are 0."""
    dtype = get_compute_dtype(torch.promote_types(x_BTD.dtype, weight_DW.dtype))
    if state_BDW is None:
        state_BDW = x_BTD.new_zeros(x_BTD.shape[0], x_BTD.shape[2], weight_DW.shape[1] - 1)
    y_BTD, last_BWD = _Conv.apply(
        native.lay_out(x_BTD, dtype),
        weight_DW.to(dtype).T.contiguous(),
        None if bias_D is None else bias_D.to(dtype),
        segments_BT,
        state_BDW.to(dtype).transpose(1, 2).contiguous(),
    )
    kept_BDW = last_BWD.transpose(1, 2).to(x_BTD.dtype)
    return y_BTD.to(torch.promote_types(x_BTD.dtype, weight_DW.dtype)), kept_BDW


class _Conv(torch.autograd.Function):
    """The kernel and its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        weight_KD: Tensor,
        bias_D: Tensor | None,
        segments_BT: Tensor | None,
        state_BWD: Tensor,
    ) -> tuple[Tensor, Tensor]:
        if segments_BT is not None:
            segments_BT = segments_BT.long().contiguous()
        y_BTD, last_BWD = x_BTD.new_empty(x_BTD.shape), torch.empty_like(state_BWD)
        ctx.save_for_backward(x_BTD, weight_KD, bias_D, segments_BT, state_BWD)
        inputs = _list_inputs(x_BTD, weight_KD, bias_D, segments_BT, state_BWD)
        native.call(KERNEL, "forward", x_BTD.dtype, *inputs, y_BTD, last_BWD)
        return y_BTD, last_BWD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, weight_KD, bias_D, segments_BT, state_BWD = ctx.saved_tensors
        num_rows, _, num_channels = x_BTD.shape
        grad_x_BTD, grad_state_BWD = x_BTD.new_empty(x_BTD.shape), torch.empty_like(state_BWD)
        grad_weight_BKD = x_BTD.new_empty(num_rows, *weight_KD.shape)
        grad_bias_BD = x_BTD.new_empty(num_rows, num_channels)
        native.call(
            KERNEL,
            "backward",
            x_BTD.dtype,
            *_list_inputs(x_BTD, weight_KD, bias_D, segments_BT, state_BWD),
            *(None, None),
            *(grad.contiguous() for grad in grads),
            *(grad_x_BTD, grad_weight_BKD, grad_bias_BD, grad_state_BWD),
        )
        grad_bias_D = None if bias_D is None else grad_bias_BD.sum(0)
        return grad_x_BTD, grad_weight_BKD.sum(0), grad_bias_D, None, grad_state_BWD


def _list_inputs(
    x_BTD: Tensor,
    weight_KD: Tensor,
    bias_D: Tensor | None,
    segments_BT: Tensor | None,
    state_BWD: Tensor,
) -> tuple[Tensor | int | None, ...]:
    """List the first members of the kernel's struct."""
    sizes = (*x_BTD.shape, state_BWD.shape[1], torch.get_num_threads())
    return (*sizes, segments_BT, x_BTD, *x_BTD.stride()[:2], weight_KD, bias_D, state_BWD)
