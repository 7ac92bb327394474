"""The causal convolution on a GPU, in one kernel forward and one backward.

Legend: B batch, T tokens, D channels, W kept inputs (kernel width - 1), L = W + 1 lags, K tiles of
tokens, R rows of numbers (B T).

With documents or padding, a small table says for every token and lag where the input stands. The
gradients of the taps are sums per tile that are added up in a fixed order: no atomics, so the same
inputs give the same bits.
"""

from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridize.ops.segments import find_starts
from hybridize.ops.triton_support import flatten_rows, get_compute_type, on_device, round_up

TOKENS, CHANNELS, WARPS = 64, 64, 8
"""Tokens and channels of one tile, and the warps that share it."""


class _Order(NamedTuple):
    """The real tokens of each row in a line: which they are, and whose."""

    rank_BT: Tensor
    """Place in the line of each token; only meant at real tokens."""
    position_BT: Tensor
    """Token at each place of the line; padding stands behind."""
    document_BT: Tensor
    """Documents before the token's own in its row, at each place of the line."""
    num_real_B1: Tensor
    """Length of the line."""


def causal_conv_triton(
    x_BTD: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None,
    *,
    segments_BT: Tensor | None = None,
    state_BDW: Tensor | None = None,
    chunk: int = TOKENS,
) -> tuple[Tensor, Tensor]:
    """See `hybridize.ops.causal_conv.causal_conv`; `chunk` is the number of tokens of a tile."""
    order = None if segments_BT is None else _line_up(segments_BT)
    y_BTD = _Convolve.apply(x_BTD, weight_DW, bias_D, state_BDW, segments_BT, order, chunk)
    return y_BTD, _keep_last(x_BTD, state_BDW, order, weight_DW.shape[1] - 1)


class _Convolve(torch.autograd.Function):
    """The outputs; the kept inputs are plain indexing and left to autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        weight_DL: Tensor,
        bias_D: Tensor | None,
        state_BDW: Tensor | None,
        segments_BT: Tensor | None,
        order: _Order | None,
        chunk: int,
    ) -> Tensor:
        from hybridize.ops.causal_conv import triton_kernels as kernels

        ctx.save_for_backward(x_BTD, weight_DL, bias_D, state_BDW, segments_BT)
        ctx.order, ctx.chunk = order, chunk
        num_kept = weight_DL.shape[1] - 1
        source_BTL = None
        if segments_BT is not None and order is not None:
            source_BTL = _find_sources(segments_BT, order, num_kept)
        dtypes = [values.dtype for values in (x_BTD, weight_DL, bias_D) if values is not None]
        dtype = reduce(torch.promote_types, dtypes)
        y_BTD = torch.empty(x_BTD.shape, dtype=dtype, device=x_BTD.device)
        x_RD = flatten_rows(x_BTD)
        with on_device(x_BTD):
            kernels.forward[_get_grid(x_BTD, chunk)](
                x_RD,
                weight_DL.contiguous(),
                None if bias_D is None else bias_D.contiguous(),
                state_BDW if state_BDW is None else state_BDW.to(x_BTD.dtype).contiguous(),
                source_BTL,
                y_BTD,
                *(x_BTD.shape[1], x_BTD.shape[2], x_RD.stride(0)),
                **_get_sizes(x_BTD, num_kept, chunk),
            )
        return y_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from hybridize.ops.causal_conv import triton_kernels as kernels

        x_BTD, weight_DL, bias_D, state_BDW, segments_BT = ctx.saved_tensors
        (grad_BTD,), order, num_kept = grads, ctx.order, weight_DL.shape[1] - 1
        target_BTL = None if order is None else _find_targets(segments_BT, order, num_kept)
        x_RD, grad_RD = flatten_rows(x_BTD), flatten_rows(grad_BTD)
        grid = _get_grid(x_BTD, ctx.chunk)
        sizes = _get_sizes(x_BTD, num_kept, ctx.chunk)
        grad_x_BTD = torch.empty(x_BTD.shape, dtype=x_BTD.dtype, device=x_BTD.device)
        partial_KLD = torch.empty(
            (x_BTD.shape[0] * grid[0], num_kept + 2, x_BTD.shape[2]),
            dtype=torch.promote_types(x_BTD.dtype, torch.float32),
            device=x_BTD.device,
        )
        with on_device(x_BTD):
            kernels.backward[grid](
                *(x_RD, weight_DL.contiguous(), grad_RD, target_BTL, grad_x_BTD, partial_KLD),
                *(x_BTD.shape[1], x_BTD.shape[2], x_RD.stride(0), grad_RD.stride(0)),
                **sizes,
            )
        sums_DL = partial_KLD.sum(0).T
        grad_weight_DL, grad_bias_D, grad_state_BDW = sums_DL[:, :-1], None, None
        if bias_D is not None:
            grad_bias_D = sums_DL[:, -1].to(bias_D.dtype)
        if state_BDW is not None:
            first_BWD = _take_first(grad_BTD, order, num_kept).to(partial_KLD.dtype)
            grad_state_BDW, added_DL = _pass_state(first_BWD, weight_DL, state_BDW)
            grad_state_BDW = grad_state_BDW.to(state_BDW.dtype)
            grad_weight_DL = grad_weight_DL + added_DL
        grad_weight_DL = grad_weight_DL.to(weight_DL.dtype)
        return grad_x_BTD, grad_weight_DL, grad_bias_D, grad_state_BDW, None, None, None


def _get_grid(x_BTD: Tensor, chunk: int) -> tuple[int, int, int]:
    num_rows, num_tokens, num_channels = x_BTD.shape
    return -(-num_tokens // chunk), -(-num_channels // CHANNELS), num_rows


def _get_sizes(x_BTD: Tensor, num_kept: int, chunk: int) -> dict[str, Any]:
    return {
        "W": num_kept,
        "TOKENS": round_up(chunk),
        "CHANNELS": CHANNELS,
        "COMPUTE": get_compute_type(x_BTD.dtype),
        "num_warps": WARPS,
    }


def _line_up(segments_BT: Tensor) -> _Order:
    is_real_BT = segments_BT != 0
    num_real_B1 = is_real_BT.sum(dim=1, keepdim=True)
    rank_BT = is_real_BT.cumsum(dim=1) - 1
    behind_BT = num_real_B1 + (~is_real_BT).cumsum(dim=1) - 1
    place_BT = torch.where(is_real_BT, rank_BT, behind_BT)
    positions_BT = torch.arange(segments_BT.shape[1], device=segments_BT.device).expand_as(place_BT)
    position_BT = torch.empty_like(place_BT).scatter_(1, place_BT, positions_BT)
    document_BT = find_starts(segments_BT).long().cumsum(dim=1).gather(1, position_BT)
    return _Order(rank_BT, position_BT, document_BT, num_real_B1)


def _find_sources(segments_BT: Tensor, order: _Order, num_kept: int) -> Tensor:
    """Say which token each lag reads: -W..-1 is the state, -W - 1 nothing."""
    lags_L = torch.arange(num_kept + 1, device=segments_BT.device)
    rank_BTL = order.rank_BT[..., None] - lags_L
    position_BTL, document_BTL = _look_up(order, rank_BTL)
    own_BT1 = order.document_BT.gather(1, order.rank_BT.clamp(min=0))[..., None]
    source_BTL = torch.where(rank_BTL >= 0, position_BTL, rank_BTL)
    # What stands before the row belongs to document 0.
    document_BTL = document_BTL.masked_fill(rank_BTL < 0, 0)
    is_own_BTL = (document_BTL == own_BT1) & (segments_BT != 0)[..., None]
    return source_BTL.masked_fill(~is_own_BTL, -num_kept - 1).int()


def _find_targets(segments_BT: Tensor, order: _Order, num_kept: int) -> Tensor:
    """Say which token reads each token at each lag; T is none."""
    lags_L = torch.arange(num_kept + 1, device=segments_BT.device)
    rank_BTL = order.rank_BT[..., None] + lags_L
    position_BTL, document_BTL = _look_up(order, rank_BTL)
    own_BT1 = order.document_BT.gather(1, order.rank_BT.clamp(min=0))[..., None]
    is_own_BTL = (document_BTL == own_BT1) & (rank_BTL < order.num_real_B1[..., None])
    is_own_BTL &= (segments_BT != 0)[..., None]
    return position_BTL.masked_fill(~is_own_BTL, segments_BT.shape[1]).int()


def _look_up(order: _Order, rank_BTL: Tensor) -> tuple[Tensor, Tensor]:
    index_BX = rank_BTL.flatten(1).clamp(0, order.rank_BT.shape[1] - 1)
    position_BX = order.position_BT.gather(1, index_BX)
    document_BX = order.document_BT.gather(1, index_BX)
    return position_BX.view(rank_BTL.shape), document_BX.view(rank_BTL.shape)


def _keep_last(
    x_BTD: Tensor, state_BDW: Tensor | None, order: _Order | None, num_kept: int
) -> Tensor:
    """Take the last inputs of the last document, zeros where the document is shorter."""
    num_rows, num_tokens, num_channels = x_BTD.shape
    if state_BDW is None:
        state_BDW = x_BTD.new_zeros(num_rows, num_channels, num_kept)
    state_BDW = state_BDW.to(x_BTD.dtype)
    if order is None:
        last_BDW = x_BTD[:, max(0, num_tokens - num_kept) :].transpose(1, 2)
        return torch.cat([state_BDW[..., num_tokens:], last_BDW], dim=2)
    lags_W = torch.arange(num_kept, device=x_BTD.device)
    rank_BW = order.num_real_B1 + lags_W - num_kept
    last_B1 = order.document_BT.gather(1, (order.num_real_B1 - 1).clamp(min=0))
    position_BWL, document_BWL = _look_up(order, rank_BW[..., None])
    is_own_BW = (rank_BW >= 0) & (document_BWL[..., 0] == last_B1)
    from_row_BWD = x_BTD.gather(1, position_BWL.expand(-1, -1, num_channels))
    kept_BDW = from_row_BWD.masked_fill(~is_own_BW[..., None], 0).transpose(1, 2)
    index_BW = (rank_BW + num_kept).clamp(0, num_kept - 1)
    from_state_BDW = state_BDW.gather(2, index_BW[:, None].expand(-1, num_channels, -1))
    is_state_BW = (rank_BW < 0) & (last_B1 == 0)
    return torch.where(is_state_BW[:, None], from_state_BDW, kept_BDW)


def _take_first(grad_BTD: Tensor, order: _Order | None, num_kept: int) -> Tensor:
    """Take the gradients of the first W tokens of the first document, zeros where it is shorter."""
    first_BWD = grad_BTD[:, :num_kept]
    if order is not None:
        ranks_W = torch.arange(first_BWD.shape[1], device=grad_BTD.device)
        index_BW1 = order.position_BT[:, : len(ranks_W), None]
        is_first_BW = (order.document_BT[:, : len(ranks_W)] == 0) & (ranks_W < order.num_real_B1)
        first_BWD = grad_BTD.gather(1, index_BW1.expand_as(first_BWD))
        first_BWD = first_BWD.masked_fill(~is_first_BW[..., None], 0)
    return F.pad(first_BWD, (0, 0, 0, num_kept - first_BWD.shape[1]))


def _pass_state(first_BWD: Tensor, weight_DL: Tensor, state_BDW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the state, and what the state adds to that of the taps."""
    weight_DL, state_BDW = weight_DL.to(first_BWD.dtype), state_BDW.to(first_BWD.dtype)
    grad_state_BDW, added_DL = torch.zeros_like(state_BDW), torch.zeros_like(weight_DL)
    num_kept = state_BDW.shape[2]
    for rank in range(num_kept):
        grad_BD1 = first_BWD[:, rank, :, None]
        grad_state_BDW[..., rank:] += grad_BD1 * weight_DL[:, : num_kept - rank]
        added_DL[:, : num_kept - rank] += (grad_BD1 * state_BDW[..., rank:]).sum(0)
    return grad_state_BDW, added_DL
