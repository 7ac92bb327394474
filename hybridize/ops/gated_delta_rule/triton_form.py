"""The gated delta rule on a GPU: chunks solved side by side, states carried from one to the next.

Legend: B batch, T tokens, H heads, P channels per value, G groups of heads that share queries and
keys, N channels per key, K chunks, L tokens of a chunk, J blocks of key channels, R rows of numbers
(B T).

Kept for the backward pass are the inputs; inverses, states and changes are made again. Sums over
blocks are written side by side and added up in a fixed order: the same inputs give the same bits.
"""

from typing import Any, NamedTuple

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
"""Tokens per chunk; most channels of one block; least size of a product's factor; warps of a
program."""
ENTRIES = 4096
"""Most entries of the part of a state that one program carries."""


class _Counts(NamedTuple):
    """How many of everything, and the tiles."""

    rows: int
    tokens: int
    chunks: int
    heads: int
    channels: int
    states: int
    groups: int
    sizes: dict[str, Any]
    """Of kernels that see one chunk."""
    carried: dict[str, Any]
    """Of kernels that carry states, whose N holds whole keys."""

    @property
    def numbers(self) -> tuple[int, int, int, int, int]:
        """What every kernel is told."""
        return self.tokens, self.heads, self.channels, self.states, self.heads // self.groups


def gated_delta_rule_triton(
    q_BTGN: Tensor,
    k_BTGN: Tensor,
    v_BTHP: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    *,
    segments_BT: Tensor | None = None,
    state_BHPN: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """See `hybridize.ops.gated_delta_rule.gated_delta_rule`; `chunk` is the tokens of a chunk."""
    mark_BT = None if segments_BT is None else mark_documents(segments_BT)
    return _Rule.apply(q_BTGN, k_BTGN, v_BTHP, g_BTH, beta_BTH, state_BHPN, mark_BT, chunk)


class _Rule(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BTGN: Tensor,
        k_BTGN: Tensor,
        v_BTHP: Tensor,
        g_BTH: Tensor,
        beta_BTH: Tensor,
        state_BHPN: Tensor | None,
        mark_BT: Tensor | None,
        chunk: int | None,
    ) -> tuple[Tensor, Tensor]:
        from hybridize.ops.gated_delta_rule import triton_kernels as kernels

        ctx.save_for_backward(q_BTGN, k_BTGN, v_BTHP, g_BTH, beta_BTH, state_BHPN, mark_BT)
        ctx.counts = counts = _count(k_BTGN, v_BTHP, chunk)
        q_RX, k_RX, v_RX, g_RH, beta_RH = map(
            flatten_rows, (q_BTGN, k_BTGN, v_BTHP, g_BTH, beta_BTH)
        )
        y_BTHP = torch.empty(v_BTHP.shape, dtype=v_BTHP.dtype, device=v_BTHP.device)
        with on_device(v_BTHP):
            _, states_BKHPN, last_BHPN, changes_BTHP = _carry(
                [k_RX, v_RX, g_RH, beta_RH], state_BHPN, mark_BT, counts
            )
            num_blocks = -(-counts.channels // counts.sizes["P"])
            kernels.read[counts.chunks * num_blocks, counts.heads, counts.rows](
                *(q_RX, k_RX, g_RH, mark_BT, changes_BTHP, states_BKHPN, y_BTHP),
                *counts.numbers,
                *(q_RX.stride(0), k_RX.stride(0), g_RH.stride(0)),
                **counts.sizes,
            )
        return y_BTHP, last_BHPN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_BTGN, k_BTGN, v_BTHP, g_BTH, beta_BTH, state_BHPN, mark_BT = ctx.saved_tensors
        rows = [flatten_rows(v) for v in (q_BTGN, k_BTGN, v_BTHP, g_BTH, beta_BTH, grads[0])]
        with on_device(v_BTHP):
            inverse_BKHLL, states_BKHPN, _, changes_BTHP = _carry(
                rows[1:5], state_BHPN, mark_BT, ctx.counts
            )
            grads_BKHPN, missing_BTHP, grad_v_BTHP, grad_state_BHPN = _carry_back(
                rows, inverse_BKHLL, grads[1].contiguous(), mark_BT, ctx.counts
            )
            grad_q_BTGN, grad_k_BTGN, grad_g_BTH, grad_beta_BTH = _write_keys(
                rows,
                (mark_BT, changes_BTHP, missing_BTHP, states_BKHPN, grads_BKHPN),
                ctx.counts,
            )
        if mark_BT is not None:
            is_padding_BT1 = (mark_BT & 1).bool()[..., None]
            grad_g_BTH = grad_g_BTH.masked_fill(is_padding_BT1, 0)
            grad_beta_BTH = grad_beta_BTH.masked_fill(is_padding_BT1, 0)
        return (
            grad_q_BTGN.to(q_BTGN.dtype),
            grad_k_BTGN.to(k_BTGN.dtype),
            grad_v_BTHP,
            grad_g_BTH.to(g_BTH.dtype),
            grad_beta_BTH.to(beta_BTH.dtype),
            None if state_BHPN is None else grad_state_BHPN.to(state_BHPN.dtype),
            None,
            None,
        )


def _carry(
    rows: list[Tensor], state_BHPN: Tensor | None, mark_BT: Tensor | None, counts: _Counts
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (I + A)^-1 of each chunk, the states before each and the last one, and the changes."""
    from hybridize.ops.gated_delta_rule import triton_kernels as kernels

    k_RX, v_RX, g_RH, beta_RH = rows
    made: dict[str, Any] = {"dtype": get_factor_dtype(v_RX.dtype), "device": v_RX.device}
    length, per_chunk = counts.sizes["CHUNK"], (counts.rows, counts.chunks, counts.heads)
    inverse_BKHLL = torch.empty((*per_chunk, length, length), **made)
    states_BKHPN = torch.empty((*per_chunk, counts.channels, counts.states), **made)
    changes_BTHP = torch.empty((counts.rows, counts.tokens, counts.heads, counts.channels), **made)
    last_BHPN = states_BKHPN.new_empty(
        (counts.rows, counts.heads, counts.channels, counts.states),
        dtype=torch.promote_types(v_RX.dtype, torch.float32),
    )
    inner = {name: value for name, value in counts.sizes.items() if name != "P"}
    tokens, heads, _, states, per_group = counts.numbers
    kernels.invert[counts.chunks, counts.heads, counts.rows](
        *(k_RX, g_RH, beta_RH, mark_BT, inverse_BKHLL, tokens, heads, states, per_group),
        *(k_RX.stride(0), g_RH.stride(0), beta_RH.stride(0)),
        **inner,
    )
    num_blocks = -(-counts.channels // counts.carried["P"])
    kernels.carry[num_blocks, counts.heads, counts.rows](
        *(k_RX, v_RX, g_RH, beta_RH, mark_BT, inverse_BKHLL),
        None if state_BHPN is None else state_BHPN.contiguous(),
        *(states_BKHPN, last_BHPN, changes_BTHP),
        *counts.numbers,
        *(values.stride(0) for values in rows),
        **counts.carried,
    )
    return inverse_BKHLL, states_BKHPN, last_BHPN, changes_BTHP


def _carry_back(
    rows: list[Tensor],
    inverse_BKHLL: Tensor,
    grad_last_BHPN: Tensor,
    mark_BT: Tensor | None,
    counts: _Counts,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the states after each chunk, of what is missing, of v, and of the
    state before the row."""
    from hybridize.ops.gated_delta_rule import triton_backward as kernels

    q_RX, k_RX, v_RX, g_RH, beta_RH, grad_RX = rows
    shape = (counts.rows, counts.tokens, counts.heads, counts.channels)
    pulled_BTHP = grad_last_BHPN.new_empty(shape)
    num_blocks = -(-counts.channels // counts.sizes["P"])
    kernels.pull[counts.chunks * num_blocks, counts.heads, counts.rows](
        *(q_RX, k_RX, g_RH, mark_BT, grad_RX, pulled_BTHP),
        *counts.numbers,
        *(values.stride(0) for values in (q_RX, k_RX, g_RH, grad_RX)),
        **counts.sizes,
    )
    grads_BKHPN = inverse_BKHLL.new_empty(
        (counts.rows, counts.chunks, counts.heads, counts.channels, counts.states)
    )
    missing_BTHP = inverse_BKHLL.new_empty(shape)
    grad_v_BTHP = v_RX.new_empty(shape)
    grad_state_BHPN = torch.empty_like(grad_last_BHPN)
    num_blocks = -(-counts.channels // counts.carried["P"])
    kernels.carry_back[num_blocks, counts.heads, counts.rows](
        *(q_RX, k_RX, g_RH, beta_RH, mark_BT, inverse_BKHLL, grad_RX, pulled_BTHP),
        *(grad_last_BHPN, grads_BKHPN, missing_BTHP, grad_v_BTHP, grad_state_BHPN),
        *counts.numbers,
        *(values.stride(0) for values in (q_RX, k_RX, g_RH, beta_RH, grad_RX)),
        **counts.carried,
    )
    return grads_BKHPN, missing_BTHP, grad_v_BTHP, grad_state_BHPN


def _write_keys(
    rows: list[Tensor], others: tuple[Tensor | None, ...], counts: _Counts
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, g and beta."""
    from hybridize.ops.gated_delta_rule import triton_backward as kernels

    q_RX, k_RX, v_RX, g_RH, beta_RH, grad_RX = rows
    num_blocks = -(-counts.states // counts.sizes["N"])
    made: dict[str, Any] = {
        "dtype": torch.promote_types(v_RX.dtype, torch.float32),
        "device": v_RX.device,
    }
    grad_q_BTGN = torch.empty((counts.rows, counts.tokens, counts.groups, counts.states), **made)
    grad_k_BTGN = torch.empty_like(grad_q_BTGN)
    grad_g_JBTH = torch.empty((num_blocks, counts.rows, counts.tokens, counts.heads), **made)
    grad_beta_JBTH = torch.empty_like(grad_g_JBTH)
    mark_BT, changes_BTHP, missing_BTHP, states_BKHPN, grads_BKHPN = others
    kernels.write_keys[counts.chunks * num_blocks, counts.groups, counts.rows](
        *(q_RX, k_RX, v_RX, g_RH, beta_RH, mark_BT, grad_RX),
        *(changes_BTHP, missing_BTHP, states_BKHPN, grads_BKHPN),
        *(grad_q_BTGN, grad_k_BTGN, grad_g_JBTH, grad_beta_JBTH),
        *counts.numbers,
        *(values.stride(0) for values in rows),
        **counts.sizes,
    )
    return grad_q_BTGN, grad_k_BTGN, grad_g_JBTH.sum(0), grad_beta_JBTH.sum(0)


def _count(k_BTGN: Tensor, v_BTHP: Tensor, chunk: int | None) -> _Counts:
    """Choose tiles that fit into registers: factors of 4 bytes leave room for half as many."""
    num_rows, num_tokens, num_heads, num_channels = v_BTHP.shape
    num_groups, num_states = k_BTGN.shape[2:]
    factor, precision = get_product_type(v_BTHP.dtype)
    block = BLOCK if factor.primitive_bitwidth == 16 else BLOCK // 2
    if chunk is None:
        chunk = CHUNK if block == BLOCK else CHUNK // 2
    chunk = round_up(min(chunk, num_tokens), LEAST)
    common = {
        "CHUNK": chunk,
        "COMPUTE": get_compute_type(v_BTHP.dtype),
        "FACTOR": factor,
        "PRECISION": precision,
        "num_warps": WARPS,
    }
    channels, states = round_up(num_channels, LEAST), round_up(num_states, LEAST)
    sizes = common | {"P": min(block, channels), "N": min(block // 2, states)}
    carried = common | {"P": min(block, channels, max(LEAST, ENTRIES // states)), "N": states}
    num_chunks = -(-num_tokens // chunk)
    return _Counts(
        *(num_rows, num_tokens, num_chunks, num_heads, num_channels, num_states, num_groups),
        *(sizes, carried),
    )
