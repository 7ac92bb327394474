"""The gated norm in C++: nothing but its inputs is kept for the backward pass.

Legend: B batch, T tokens, R tokens of all rows, E channels.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridize.ops import native
from hybridize.ops.segments import get_compute_dtype

KERNEL = Path(__file__).with_name("kernel.cpp")
SHARE = 256
"""Tokens whose gradients of the weight the kernel sums; it says the same."""


def find_obstacle(device: torch.device) -> str | None:
    """Say why this form cannot run on the device, or return None."""
    return native.find_obstacle(KERNEL, device)


def gated_norm_compiled(
    y_BTE: Tensor, z_BTE: Tensor | None, weight_E: Tensor, *, num_groups: int, eps: float
) -> Tensor:
    """See `hybridize.ops.gated_norm.gated_norm`."""
    dtype = get_compute_dtype(y_BTE.dtype)
    out_RE = _Norm.apply(
        native.lay_out(y_BTE.flatten(0, 1), dtype),
        None if z_BTE is None else native.lay_out(z_BTE.flatten(0, 1), dtype),
        weight_E.to(dtype).contiguous(),
        num_groups,
        eps,
    )
    return out_RE.view(y_BTE.shape).to(torch.promote_types(y_BTE.dtype, weight_E.dtype))


class _Norm(torch.autograd.Function):
    """The kernel and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, y_RE: Tensor, z_RE: Tensor | None, weight_E: Tensor, num_groups: int, eps: float
    ) -> Tensor:
        eps_1 = y_RE.new_full((1,), eps)
        ctx.save_for_backward(y_RE, z_RE, weight_E, eps_1)
        ctx.num_groups = num_groups
        out_RE = y_RE.new_empty(y_RE.shape)
        inputs = _list_inputs(num_groups, y_RE, z_RE, weight_E, eps_1)
        native.call(KERNEL, "forward", y_RE.dtype, *inputs, out_RE)
        return out_RE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y_RE, z_RE, weight_E, eps_1 = ctx.saved_tensors
        grad_y_RE, grad_z_RE = y_RE.new_empty(y_RE.shape), None
        if z_RE is not None:
            grad_z_RE = y_RE.new_empty(y_RE.shape)
        grad_weight_SE = y_RE.new_empty(-(-y_RE.shape[0] // SHARE), y_RE.shape[1])
        native.call(
            KERNEL,
            "backward",
            y_RE.dtype,
            *_list_inputs(ctx.num_groups, y_RE, z_RE, weight_E, eps_1),
            *(None, grads[0].contiguous(), grad_y_RE, grad_z_RE, grad_weight_SE),
        )
        return grad_y_RE, grad_z_RE, grad_weight_SE.sum(0), None, None


def _list_inputs(
    num_groups: int, y_RE: Tensor, z_RE: Tensor | None, weight_E: Tensor, eps_1: Tensor
) -> tuple[Tensor | int | None, ...]:
    """List the first members of the kernel's struct."""
    sizes = (*y_RE.shape, num_groups, torch.get_num_threads())
    z_token = 0 if z_RE is None else z_RE.stride(0)
    return (*sizes, y_RE, y_RE.stride(0), z_RE, z_token, weight_E, eps_1)
