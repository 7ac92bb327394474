"""The gated unit in C++: one pass forwards and one backwards, nothing kept but the inputs.

Legend: B batch, T tokens, F channels of the MLP.
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


def gated_unit_compiled(gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
    """See `hybridize.ops.gated_unit.gated_unit`; computed in float32, or float64 for float64."""
    dtype = get_compute_dtype(up_BTF.dtype)
    out_BTF: Tensor = _Unit.apply(native.fit(gate_BTF, dtype), native.fit(up_BTF, dtype))
    return out_BTF.to(up_BTF.dtype)


class _Unit(torch.autograd.Function):
    """The kernel and its gradient."""

    @staticmethod
    def forward(ctx: Any, gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_BTF, up_BTF)
        out_BTF = torch.empty_like(up_BTF)
        sizes = (up_BTF.numel(), torch.get_num_threads())
        native.call(KERNEL, "forward", up_BTF.dtype, *sizes, gate_BTF, up_BTF, out_BTF)
        return out_BTF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate_BTF, up_BTF = ctx.saved_tensors
        grad_gate_BTF, grad_up_BTF = torch.empty_like(gate_BTF), torch.empty_like(up_BTF)
        sizes = (up_BTF.numel(), torch.get_num_threads())
        made = (grads[0].contiguous(), grad_gate_BTF, grad_up_BTF)
        native.call(KERNEL, "backward", up_BTF.dtype, *sizes, gate_BTF, up_BTF, None, *made)
        return grad_gate_BTF, grad_up_BTF
