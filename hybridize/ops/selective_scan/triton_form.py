"""The recurrence of Mamba on a GPU, one kernel forward and one backward, states in registers.

Legend: B batch, T tokens, D channels, G groups of channels that share B and C, N state size per
channel, K tiles of tokens, J blocks of channels in a group.

Kept for the backward pass are the inputs and the states before each tile. Sums over rows and blocks
are written side by side and added up in a fixed order: the same inputs give the same bits.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridize.ops.segments import find_starts
from hybridize.ops.triton_support import flatten_rows, get_compute_type, on_device, round_up

ENTRIES = 4096
"""Tokens times channels times states of one tile, which a program holds a few of in registers."""
CHANNELS, MOST_TOKENS = 16, 64
"""Most channels of one program, and most tokens of one tile."""
WARPS = 8


def selective_scan_triton(
    x_BTD: Tensor,
    dt_BTD: Tensor,
    A_DN: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_D: Tensor | None,
    *,
    segments_BT: Tensor | None = None,
    state_BDN: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """See `hybridize.ops.selective_scan.selective_scan`; `chunk` is the tokens of a tile."""
    mark_BT = None if segments_BT is None else _mark(segments_BT)
    inputs = (x_BTD, dt_BTD, A_DN, B_BTGN, C_BTGN, D_D, state_BDN)
    keep = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in inputs)
    return _Scan.apply(*inputs, mark_BT, chunk, keep)


def _mark(segments_BT: Tensor) -> Tensor:
    """Number the tokens by what they do to the state: 1 begins a document, 2 is padding."""
    return find_starts(segments_BT).to(torch.int8).masked_fill(segments_BT == 0, 2)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        dt_BTD: Tensor,
        A_DN: Tensor,
        B_BTGN: Tensor,
        C_BTGN: Tensor,
        D_D: Tensor | None,
        state_BDN: Tensor | None,
        mark_BT: Tensor | None,
        chunk: int | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        from hybridize.ops.selective_scan import triton_kernels as kernels

        (num_rows, num_tokens, num_channels), num_states = x_BTD.shape, A_DN.shape[1]
        sizes = _get_sizes(x_BTD, B_BTGN, chunk)
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        y_BTD = torch.empty(x_BTD.shape, dtype=x_BTD.dtype, device=x_BTD.device)
        last_BDN = y_BTD.new_empty((num_rows, num_channels, num_states), dtype=dtype)
        border_BKDN = None
        if keep:
            num_tiles = -(-num_tokens // sizes["TOKENS"])
            border_BKDN = last_BDN.new_empty(num_rows, num_tiles, num_channels, num_states)
        inputs = [flatten_rows(values) for values in (x_BTD, dt_BTD, B_BTGN, C_BTGN)]
        with on_device(x_BTD):
            kernels.forward[_get_grid(B_BTGN, x_BTD, sizes)](
                *(inputs[0], inputs[1], A_DN.contiguous(), inputs[2], inputs[3]),
                *(None if D_D is None else D_D.contiguous(), mark_BT),
                None if state_BDN is None else state_BDN.contiguous(),
                *(y_BTD, last_BDN, border_BKDN),
                *(num_tokens, num_channels, num_channels // B_BTGN.shape[2], num_states),
                *(values.stride(0) for values in inputs),
                **sizes,
            )
        ctx.save_for_backward(x_BTD, dt_BTD, A_DN, B_BTGN, C_BTGN, D_D, mark_BT, border_BKDN)
        ctx.sizes, ctx.state_dtype = sizes, None if state_BDN is None else state_BDN.dtype
        return y_BTD, last_BDN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from hybridize.ops.selective_scan import triton_kernels as kernels

        x_BTD, dt_BTD, A_DN, B_BTGN, C_BTGN, D_D, mark_BT, border_BKDN = ctx.saved_tensors
        (num_rows, num_tokens, num_channels), num_states = x_BTD.shape, A_DN.shape[1]
        grid, num_groups = _get_grid(B_BTGN, x_BTD, ctx.sizes), B_BTGN.shape[2]
        grad_x_BTD = torch.empty(x_BTD.shape, dtype=x_BTD.dtype, device=x_BTD.device)
        grad_dt_BTD = torch.empty(dt_BTD.shape, dtype=dt_BTD.dtype, device=x_BTD.device)
        grad_A_BDN = border_BKDN.new_empty(num_rows, num_channels, num_states)
        grad_state_BDN = torch.empty_like(grad_A_BDN)
        grad_B_BTJN = border_BKDN.new_empty(num_rows, num_tokens, grid[0], num_states)
        grad_C_BTJN = torch.empty_like(grad_B_BTJN)
        grad_D_BD = None if D_D is None else border_BKDN.new_empty(num_rows, num_channels)
        inputs = [flatten_rows(v) for v in (x_BTD, dt_BTD, B_BTGN, C_BTGN, grads[0])]
        with on_device(x_BTD):
            kernels.backward[grid](
                *(inputs[0], inputs[1], A_DN.contiguous(), inputs[2], inputs[3]),
                *(None if D_D is None else D_D.contiguous(), mark_BT, border_BKDN),
                *(inputs[4], grads[1].contiguous()),
                *(grad_x_BTD, grad_dt_BTD, grad_A_BDN, grad_B_BTJN, grad_C_BTJN, grad_D_BD),
                grad_state_BDN,
                *(num_tokens, num_channels, num_channels // num_groups, num_states),
                *(values.stride(0) for values in inputs),
                **ctx.sizes,
            )
        grad_B_BTGN, grad_C_BTGN = (
            grad_BTJN.unflatten(2, (num_groups, -1)).sum(3).to(values.dtype)
            for grad_BTJN, values in ((grad_B_BTJN, B_BTGN), (grad_C_BTJN, C_BTGN))
        )
        return (
            grad_x_BTD,
            grad_dt_BTD,
            grad_A_BDN.sum(0).to(A_DN.dtype),
            grad_B_BTGN,
            grad_C_BTGN,
            None if grad_D_BD is None else grad_D_BD.sum(0).to(D_D.dtype),
            None if ctx.state_dtype is None else grad_state_BDN.to(ctx.state_dtype),
            None,
            None,
            None,
        )


def _get_sizes(x_BTD: Tensor, B_BTGN: Tensor, chunk: int | None) -> dict[str, Any]:
    """Choose tiles of about the same number of entries, whatever the state size."""
    channels = min(CHANNELS, round_up(x_BTD.shape[2] // B_BTGN.shape[2]))
    states = round_up(B_BTGN.shape[3])
    fitting = ENTRIES // (channels * states)
    tokens = max(2, min(MOST_TOKENS, fitting, round_up(x_BTD.shape[1])))
    return {
        "TOKENS": tokens if chunk is None else round_up(chunk),
        "CHANNELS": channels,
        "STATES": states,
        "COMPUTE": get_compute_type(x_BTD.dtype),
        "num_warps": WARPS,
    }


def _get_grid(B_BTGN: Tensor, x_BTD: Tensor, sizes: dict[str, Any]) -> tuple[int, int]:
    num_groups = B_BTGN.shape[2]
    per_group = x_BTD.shape[2] // num_groups
    return num_groups * -(-per_group // sizes["CHANNELS"]), x_BTD.shape[0]
