"""The recurrence of Mamba as two nested loops: all chunks side by side, then one carry per chunk.

Legend: B batch, T tokens, D channels, G groups of channels that share B and C, N state size per
channel, K chunks, L tokens of one chunk, M = D N state entries.

A loop over T tokens becomes one over L tokens on K times more data, plus one over K chunk ends;
with L near the root of T this is a few dozen large operations. The gradient is the same recurrence
run backwards in time, so no step of the loops is recorded.
"""

from typing import Any

import torch
from torch import Tensor

from hybridize.ops.segments import find_starts, get_compute_dtype


def selective_scan_chunked(
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
    """See `hybridize.ops.selective_scan.selective_scan`."""
    num_rows, _, num_channels = x_BTD.shape
    num_groups, num_states = B_BTGN.shape[2:]
    dtype = get_compute_dtype(x_BTD.dtype)
    value_BTD, dt_BTD = x_BTD.to(dtype), dt_BTD.to(dtype)
    if segments_BT is not None:
        dt_BTD = dt_BTD.masked_fill((segments_BT == 0)[..., None], 0)
    decay_BTDN = torch.exp(dt_BTD[..., None] * A_DN.to(dtype))
    if segments_BT is not None:
        decay_BTDN = decay_BTDN * (~find_starts(segments_BT)).to(dtype)[..., None, None]
    written_BTGC = (dt_BTD * value_BTD).unflatten(2, (num_groups, -1))
    write_BTGCN = written_BTGC[..., None] * B_BTGN.to(dtype)[:, :, :, None]
    if state_BDN is None:
        state_BDN = value_BTD.new_zeros(num_rows, num_channels, num_states)

    state_BTM, last_BM = _Scan.apply(
        decay_BTDN.flatten(2), write_BTGCN.flatten(2), state_BDN.to(dtype).flatten(1)
    )
    state_BTGCN = state_BTM.view(write_BTGCN.shape)
    y_BTD = (state_BTGCN * C_BTGN.to(dtype)[:, :, :, None]).sum(-1).flatten(2)
    if D_D is not None:
        y_BTD = y_BTD + D_D.to(dtype) * value_BTD
    return y_BTD.to(x_BTD.dtype), last_BM.view(num_rows, num_channels, num_states)


class _Scan(torch.autograd.Function):
    """Every state of h' = decay h + write, and the last one."""

    @staticmethod
    def forward(
        ctx: Any, decay_BTM: Tensor, write_BTM: Tensor, state_BM: Tensor
    ) -> tuple[Tensor, Tensor]:
        state_BTM = _scan(decay_BTM, write_BTM, state_BM)
        ctx.save_for_backward(decay_BTM, state_BTM, state_BM)
        return state_BTM, state_BTM[:, -1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay_BTM, state_BTM, state_BM = ctx.saved_tensors
        grad_BTM, grad_last_BM = grads
        # The gradient of state t is its own plus what state t + 1 hands back through its decay.
        next_BTM = torch.cat([decay_BTM[:, 1:], torch.ones_like(decay_BTM[:, :1])], dim=1)
        total_BTM = _scan(next_BTM.flip(1), grad_BTM.flip(1), grad_last_BM).flip(1)
        before_BTM = torch.cat([state_BM[:, None], state_BTM[:, :-1]], dim=1)
        return total_BTM * before_BTM, total_BTM, total_BTM[:, 0] * decay_BTM[:, 0]


def _scan(decay_BTM: Tensor, write_BTM: Tensor, state_BM: Tensor) -> Tensor:
    num_tokens = decay_BTM.shape[1]
    chunk = max(1, round(num_tokens**0.5))
    whole = num_tokens - num_tokens % chunk
    decay_BKLM = decay_BTM[:, :whole].unflatten(1, (-1, chunk))
    write_BKLM = write_BTM[:, :whole].unflatten(1, (-1, chunk))

    # First pass: what each chunk adds to the state, and how much of the state before it survives.
    added_BKM, kept_BKM = write_BKLM[:, :, 0].clone(), decay_BKLM[:, :, 0].clone()
    for i in range(1, chunk):
        torch.addcmul(write_BKLM[:, :, i], decay_BKLM[:, :, i], added_BKM, out=added_BKM)
        kept_BKM *= decay_BKLM[:, :, i]
    before_BKM = torch.empty_like(added_BKM)
    for k in range(before_BKM.shape[1]):
        before_BKM[:, k] = state_BM
        state_BM = torch.addcmul(added_BKM[:, k], kept_BKM[:, k], state_BM)

    # Second pass: every state, all chunks side by side, then the few tokens left over.
    state_BTM = torch.empty_like(write_BTM)
    state_BKLM = state_BTM[:, :whole].unflatten(1, (-1, chunk))
    for i in range(chunk):
        torch.addcmul(write_BKLM[:, :, i], decay_BKLM[:, :, i], before_BKM, out=before_BKM)
        state_BKLM[:, :, i] = before_BKM
    for t in range(whole, num_tokens):
        state_BM = torch.addcmul(write_BTM[:, t], decay_BTM[:, t], state_BM)
        state_BTM[:, t] = state_BM
    return state_BTM
