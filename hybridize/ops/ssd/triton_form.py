"""The recurrence of Mamba-2 on a GPU: states carried from chunk to chunk, chunks side by side.

Legend: B batch, T tokens, H heads, P channels per head, G groups of heads that share B and C, N
state size, K chunks, J blocks of channels or states.

Kept for the backward pass are the inputs; states before each chunk are carried again. Sums over
blocks are written side by side and added up in a fixed order: the same inputs give the same bits.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridize.ops.triton_support import (
    flatten_rows,
    get_compute_type,
    get_factor_dtype,
    get_product_type,
    mark_documents,
    on_device,
    round_up,
)

CHUNK, BLOCK, LEAST, WARPS = 64, 64, 16, 8
"""Tokens per chunk; most channels or states of one block; least size of a product's factor; warps
of a program."""


def ssd_triton(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor | None,
    *,
    segments_BT: Tensor | None = None,
    state_BHPN: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """See `hybridize.ops.ssd.ssd`; `chunk` is the tokens of a chunk, None a choice by dtype."""
    mark_BT = None if segments_BT is None else mark_documents(segments_BT)
    return _Ssd.apply(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, D_H, state_BHPN, mark_BT, chunk)


class _Ssd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BTHP: Tensor,
        dt_BTH: Tensor,
        A_H: Tensor,
        B_BTGN: Tensor,
        C_BTGN: Tensor,
        D_H: Tensor | None,
        state_BHPN: Tensor | None,
        mark_BT: Tensor | None,
        chunk: int | None,
    ) -> tuple[Tensor, Tensor]:
        from hybridize.ops.ssd import triton_kernels as kernels

        ctx.save_for_backward(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, D_H, state_BHPN, mark_BT)
        ctx.sizes = sizes = _get_sizes(x_BTHP, B_BTGN, chunk)
        x_RX, dt_RH, B_RX, C_RX = map(flatten_rows, (x_BTHP, dt_BTH, B_BTGN, C_BTGN))
        num_blocks = -(-x_BTHP.shape[3] // sizes["P"])
        num_chunks = -(-x_BTHP.shape[1] // sizes["CHUNK"])
        with on_device(x_BTHP):
            states_BKHPN, last_BHPN = _carry(
                (x_RX, dt_RH, A_H, B_RX), state_BHPN, mark_BT, x_BTHP, B_BTGN, sizes
            )
            y_BTHP = torch.empty(x_BTHP.shape, dtype=x_BTHP.dtype, device=x_BTHP.device)
            kernels.read[num_chunks * num_blocks, x_BTHP.shape[2], x_BTHP.shape[0]](
                *(x_RX, dt_RH, A_H.contiguous(), B_RX, C_RX),
                *(None if D_H is None else D_H.contiguous(), mark_BT, states_BKHPN, y_BTHP),
                *_get_counts(x_BTHP, B_BTGN),
                *(values.stride(0) for values in (x_RX, dt_RH, B_RX, C_RX)),
                **sizes,
            )
        return y_BTHP, last_BHPN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, D_H, state_BHPN, mark_BT = ctx.saved_tensors
        rows = [flatten_rows(v) for v in (x_BTHP, dt_BTH, B_BTGN, C_BTGN, grads[0])]
        x_RX, dt_RH, B_RX, C_RX, grad_RX = rows
        with on_device(x_BTHP):
            states_BKHPN, _ = _carry(
                (x_RX, dt_RH, A_H, B_RX), state_BHPN, mark_BT, x_BTHP, B_BTGN, ctx.sizes
            )
            grads_BKHPN, grad_state_BHPN = _carry(
                (grad_RX, dt_RH, A_H, C_RX),
                *(grads[1], mark_BT, x_BTHP, B_BTGN, ctx.sizes),
                backwards=True,
            )
            grad_x_BTHP, added_BTH, grad_D_H = _write_values(
                rows, (A_H, D_H, mark_BT, grads_BKHPN), x_BTHP, B_BTGN, ctx.sizes
            )
            grad_B_BTGN, grad_C_BTGN, grad_log_BTH = _write_keys(
                rows, (A_H, mark_BT, states_BKHPN, grads_BKHPN), x_BTHP, B_BTGN, ctx.sizes
            )
        step_BTH = dt_BTH.to(grad_log_BTH.dtype)
        grad_dt_BTH = added_BTH + grad_log_BTH * A_H.to(grad_log_BTH.dtype)
        if mark_BT is not None:
            is_padding_BT1 = (mark_BT & 1).bool()[..., None]
            step_BTH = step_BTH.masked_fill(is_padding_BT1, 0)
            grad_dt_BTH = grad_dt_BTH.masked_fill(is_padding_BT1, 0)
        return (
            grad_x_BTHP,
            grad_dt_BTH.to(dt_BTH.dtype),
            (grad_log_BTH * step_BTH).sum((0, 1)).to(A_H.dtype),
            grad_B_BTGN.to(B_BTGN.dtype),
            grad_C_BTGN.to(C_BTGN.dtype),
            None if D_H is None or grad_D_H is None else grad_D_H.to(D_H.dtype),
            None if state_BHPN is None else grad_state_BHPN.to(state_BHPN.dtype),
            None,
            None,
        )


def _carry(
    rows: tuple[Tensor, Tensor, Tensor, Tensor],
    state_BHPN: Tensor | None,
    mark_BT: Tensor | None,
    x_BTHP: Tensor,
    B_BTGN: Tensor,
    sizes: dict[str, Any],
    backwards: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the states before each chunk, in the type of a product's factors, and the last.

    Backwards: the gradients of the states after each chunk, and of the state before the row.
    """
    from hybridize.ops.ssd import triton_kernels as kernels

    (num_rows, num_tokens, num_heads, num_channels), num_states = x_BTHP.shape, B_BTGN.shape[3]
    num_chunks = -(-num_tokens // sizes["CHUNK"])
    last_BHPN = x_BTHP.new_empty(
        (num_rows, num_heads, num_channels, num_states),
        dtype=torch.promote_types(x_BTHP.dtype, torch.float32),
    )
    states_BKHPN = last_BHPN.new_empty(
        (num_rows, num_chunks, *last_BHPN.shape[1:]),
        dtype=get_factor_dtype(x_BTHP.dtype),
    )
    num_blocks = -(-num_channels // sizes["P"]) * -(-num_states // sizes["N"])
    values_RX, dt_RH, A_H, keys_RX = rows
    kernels.carry[num_blocks, num_heads, num_rows](
        *(values_RX, dt_RH, A_H.contiguous(), keys_RX, mark_BT),
        None if state_BHPN is None else state_BHPN.contiguous(),
        *(states_BKHPN, last_BHPN),
        *_get_counts(x_BTHP, B_BTGN),
        *(values_RX.stride(0), dt_RH.stride(0), keys_RX.stride(0)),
        BACKWARDS=backwards,
        **sizes,
    )
    return states_BKHPN, last_BHPN


def _write_values(
    rows: list[Tensor],
    others: tuple[Tensor | None, ...],
    x_BTHP: Tensor,
    B_BTGN: Tensor,
    sizes: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradient of x, its part in that of dt, and the gradient of D."""
    from hybridize.ops.ssd import triton_backward as kernels

    x_RX, dt_RH, B_RX, C_RX, grad_RX = rows
    A_H, D_H, mark_BT, grads_BKHPN = others
    assert A_H is not None
    num_rows, num_tokens, num_heads, num_channels = x_BTHP.shape
    num_blocks, num_chunks = -(-num_channels // sizes["P"]), -(-num_tokens // sizes["CHUNK"])
    dtype = torch.promote_types(x_BTHP.dtype, torch.float32)
    grad_x_BTHP = torch.empty(x_BTHP.shape, dtype=x_BTHP.dtype, device=x_BTHP.device)
    added_JBTH = x_BTHP.new_empty((num_blocks, num_rows, num_tokens, num_heads), dtype=dtype)
    grad_D_JBKH = None
    if D_H is not None:
        D_H = D_H.contiguous()
        grad_D_JBKH = added_JBTH.new_empty(num_blocks, num_rows, num_chunks, num_heads)
    kernels.write_values[num_chunks * num_blocks, num_heads, num_rows](
        *(x_RX, dt_RH, A_H.contiguous(), B_RX, C_RX, D_H, mark_BT, grads_BKHPN, grad_RX),
        *(grad_x_BTHP, added_JBTH, grad_D_JBKH),
        *_get_counts(x_BTHP, B_BTGN),
        *(values.stride(0) for values in rows),
        **sizes,
    )
    grad_D_H = None if grad_D_JBKH is None else grad_D_JBKH.sum((0, 1, 2))
    return grad_x_BTHP, added_JBTH.sum(0), grad_D_H


def _write_keys(
    rows: list[Tensor],
    others: tuple[Tensor, ...],
    x_BTHP: Tensor,
    B_BTGN: Tensor,
    sizes: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of B, C and the log decay of each token."""
    from hybridize.ops.ssd import triton_backward as kernels

    x_RX, dt_RH, B_RX, C_RX, grad_RX = rows
    A_H, mark_BT, states_BKHPN, grads_BKHPN = others
    num_rows, num_tokens, num_heads, _ = x_BTHP.shape
    num_groups, num_states = B_BTGN.shape[2:]
    num_blocks, num_chunks = -(-num_states // sizes["N"]), -(-num_tokens // sizes["CHUNK"])
    dtype = torch.promote_types(x_BTHP.dtype, torch.float32)
    grad_B_BTGN = x_BTHP.new_empty(B_BTGN.shape, dtype=dtype)
    grad_C_BTGN = torch.empty_like(grad_B_BTGN)
    grad_log_JBTH = x_BTHP.new_empty((num_blocks, num_rows, num_tokens, num_heads), dtype=dtype)
    kernels.write_keys[num_chunks * num_blocks, num_groups, num_rows](
        *(x_RX, dt_RH, A_H.contiguous(), B_RX, C_RX, mark_BT, states_BKHPN, grads_BKHPN, grad_RX),
        *(grad_B_BTGN, grad_C_BTGN, grad_log_JBTH),
        *_get_counts(x_BTHP, B_BTGN),
        *(values.stride(0) for values in rows),
        **sizes,
    )
    return grad_B_BTGN, grad_C_BTGN, grad_log_JBTH.sum(0)


def _get_counts(x_BTHP: Tensor, B_BTGN: Tensor) -> tuple[int, int, int, int, int]:
    """Return tokens, heads, channels, states, and heads per group."""
    _, num_tokens, num_heads, num_channels = x_BTHP.shape
    return num_tokens, num_heads, num_channels, B_BTGN.shape[3], num_heads // B_BTGN.shape[2]


def _get_sizes(x_BTHP: Tensor, B_BTGN: Tensor, chunk: int | None) -> dict[str, Any]:
    """Choose tiles that fit into registers: factors of 4 bytes leave room for half as many."""
    factor, precision = get_product_type(x_BTHP.dtype)
    block = BLOCK if factor.primitive_bitwidth == 16 else BLOCK // 2
    if chunk is None:
        chunk = CHUNK if block == BLOCK or precision == "tf32" else CHUNK // 2
    return {
        "CHUNK": round_up(min(chunk, x_BTHP.shape[1]), LEAST),
        "P": min(block, round_up(x_BTHP.shape[3], LEAST)),
        "N": min(block, round_up(B_BTGN.shape[3], LEAST)),
        "COMPUTE": get_compute_type(x_BTHP.dtype),
        "FACTOR": factor,
        "PRECISION": precision,
        "num_warps": WARPS,
    }
