"""The gated delta rule as matrix products over chunks of tokens.

Legend: B batch, T tokens, H heads, P channels per value, G groups of heads that share queries and
keys, N channels per key, K chunks, L and S tokens of one chunk that read and that write.

What a token changes depends on what the earlier tokens of its chunk have changed. With
A_ls = beta_l (k_l . k_s) decay_ls below the diagonal, all changes of a chunk are (I + A)^-1 beta
(v - what the state before the chunk holds under the keys): the UT transform (Yang et al. 2024,
arXiv 2406.06484, section 3; with decay: Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464,
section 3.3).
"""

from typing import Any

import torch
from torch import Tensor

from hybridize.ops.chunks import cut, get_decays
from hybridize.ops.segments import find_starts, get_compute_dtype

CHUNK = 64
"""Tokens per chunk."""


def gated_delta_rule_chunked(
    q_BTGN: Tensor,
    k_BTGN: Tensor,
    v_BTHP: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    *,
    segments_BT: Tensor | None = None,
    state_BHPN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `hybridize.ops.gated_delta_rule.gated_delta_rule`."""
    num_rows, num_tokens, num_heads, num_channels = v_BTHP.shape
    dtype = get_compute_dtype(v_BTHP.dtype)
    chunk = min(CHUNK, num_tokens)
    g_BTH, beta_BTH = g_BTH.to(dtype), beta_BTH.to(dtype)
    document_BT = None
    if segments_BT is not None:
        padding_BT1 = (segments_BT == 0)[..., None]
        g_BTH, beta_BTH = g_BTH.masked_fill(padding_BT1, 0), beta_BTH.masked_fill(padding_BT1, 0)
        document_BT = find_starts(segments_BT).long().cumsum(dim=1)

    log_BKHL = cut(g_BTH[..., None], chunk)[..., 0].cumsum(-1)
    decay_BKHLS, read_BKHL, write_BKHL = get_decays(log_BKHL, document_BT, chunk)
    q_BKHLN, k_BKHLN = cut(q_BTGN, chunk).to(dtype), cut(k_BTGN, chunk).to(dtype)
    alike_BKHLS = k_BKHLN @ k_BKHLN.transpose(-1, -2)
    scores_BKHLS = q_BKHLN @ k_BKHLN.transpose(-1, -2)
    heads_per_group = num_heads // k_BTGN.shape[2]
    if heads_per_group > 1:
        alike_BKHLS, scores_BKHLS, q_BKHLN, k_BKHLN = (
            values.repeat_interleave(heads_per_group, dim=2)
            for values in (alike_BKHLS, scores_BKHLS, q_BKHLN, k_BKHLN)
        )

    beta_BKHL1 = cut(beta_BTH[..., None], chunk)
    inverse_BKHLS = _InvertUnitLower.apply(alike_BKHLS * decay_BKHLS * beta_BKHL1)
    inverse_BKHLS = inverse_BKHLS * beta_BKHL1.transpose(-1, -2)
    wanted_BKHLP = inverse_BKHLS @ cut(v_BTHP, chunk).to(dtype)
    asked_BKHLN = inverse_BKHLS @ (k_BKHLN * read_BKHL[..., None])
    if state_BHPN is None:
        state_BHPN = v_BTHP.new_zeros(num_rows, num_heads, num_channels, k_BTGN.shape[-1])
    changes_BKHLP, before_BKHPN, state_BHPN = _Carry.apply(
        wanted_BKHLP,
        asked_BKHLN,
        k_BKHLN * write_BKHL[..., None],
        read_BKHL[..., -1],
        state_BHPN.to(dtype),
    )
    carried_BKHLP = (q_BKHLN * read_BKHL[..., None]) @ before_BKHPN.transpose(-1, -2)
    y_BKHLP = carried_BKHLP + (scores_BKHLS * decay_BKHLS) @ changes_BKHLP
    y_BTHP = y_BKHLP.transpose(2, 3).reshape(num_rows, -1, num_heads, num_channels)
    return y_BTHP[:, :num_tokens].to(v_BTHP.dtype), state_BHPN


class _InvertUnitLower(torch.autograd.Function):
    """The inverse of I + A, of which only the part of A below the diagonal is read.

    Written out because the derivative of an inverse is two products, where that of a solver is
    another solver.
    """

    @staticmethod
    def forward(ctx: Any, lower_BKHLS: Tensor) -> Tensor:
        identity_LS = torch.eye(
            lower_BKHLS.shape[-1], dtype=lower_BKHLS.dtype, device=lower_BKHLS.device
        )
        inverse_BKHLS = torch.linalg.solve_triangular(
            lower_BKHLS, identity_LS.expand_as(lower_BKHLS), upper=False, unitriangular=True
        )
        ctx.save_for_backward(inverse_BKHLS)
        return inverse_BKHLS

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (inverse_BKHLS,) = ctx.saved_tensors
        turned_BKHSL = inverse_BKHLS.transpose(-1, -2)
        return (turned_BKHSL @ grads[0] @ turned_BKHSL).tril_(-1).neg_()


class _Carry(torch.autograd.Function):
    """Carry the state from chunk to chunk: changes = wanted - asked S^T, S' = r S + changes^T kept.

    Written out so that only the two products that must wait for the chunk before are in the loop.
    """

    @staticmethod
    def forward(
        ctx: Any,
        wanted_BKHLP: Tensor,
        asked_BKHLN: Tensor,
        kept_BKHLN: Tensor,
        decay_BKH: Tensor,
        state_BHPN: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_chunks = decay_BKH.shape[1]
        before_BKHPN = state_BHPN.new_empty(len(decay_BKH), num_chunks, *state_BHPN.shape[1:])
        changes_BKHLP = torch.empty_like(wanted_BKHLP)
        for k in range(num_chunks):
            before_BKHPN[:, k] = state_BHPN
            changes_BHLP = wanted_BKHLP[:, k] - asked_BKHLN[:, k] @ state_BHPN.transpose(-1, -2)
            changes_BKHLP[:, k] = changes_BHLP
            state_BHPN = torch.addcmul(
                changes_BHLP.transpose(-1, -2) @ kept_BKHLN[:, k],
                decay_BKH[:, k, :, None, None],
                state_BHPN,
            )
        ctx.save_for_backward(asked_BKHLN, kept_BKHLN, decay_BKH, before_BKHPN, changes_BKHLP)
        return changes_BKHLP, before_BKHPN, state_BHPN

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        asked_BKHLN, kept_BKHLN, decay_BKH, before_BKHPN, changes_BKHLP = ctx.saved_tensors
        grad_changes_BKHLP, grad_before_BKHPN, grad_BHPN = grads
        grad_wanted_BKHLP = torch.empty_like(changes_BKHLP)
        after_BKHPN = torch.empty_like(before_BKHPN)
        for k in reversed(range(decay_BKH.shape[1])):
            after_BKHPN[:, k] = grad_BHPN
            grad_BHLP = grad_changes_BKHLP[:, k] + kept_BKHLN[:, k] @ grad_BHPN.transpose(-1, -2)
            grad_wanted_BKHLP[:, k] = grad_BHLP
            grad_BHPN = torch.addcmul(
                grad_before_BKHPN[:, k] - grad_BHLP.transpose(-1, -2) @ asked_BKHLN[:, k],
                decay_BKH[:, k, :, None, None],
                grad_BHPN,
            )
        return (
            grad_wanted_BKHLP,
            -(grad_wanted_BKHLP @ before_BKHPN),
            changes_BKHLP @ after_BKHPN,
            (after_BKHPN * before_BKHPN).sum((-1, -2)),
            grad_BHPN,
        )
