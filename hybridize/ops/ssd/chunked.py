"""The recurrence of Mamba-2 as matrix products over chunks of tokens.

Legend: B batch, T tokens, H heads, P channels per head, G groups of heads that share B and C, N
state size, K chunks, L and S tokens of one chunk that read and that write.

Inside a chunk the recurrence is attention without a softmax, (C B^T * decay) x; between chunks only
the state is carried (Dao and Gu 2024, arXiv 2405.21060, section 6).
"""

import torch
from torch import Tensor

from hybridize.ops.chunks import cut, get_decays
from hybridize.ops.segments import find_starts, get_compute_dtype

CHUNK = 64
"""Tokens per chunk."""


def ssd_chunked(
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
    """See `hybridize.ops.ssd.ssd`."""
    num_rows, num_tokens, num_heads, num_channels = x_BTHP.shape
    dtype = get_compute_dtype(x_BTHP.dtype)
    chunk = min(CHUNK, num_tokens)
    dt_BTH = dt_BTH.to(dtype)
    document_BT = None
    if segments_BT is not None:
        dt_BTH = dt_BTH.masked_fill((segments_BT == 0)[..., None], 0)
        document_BT = find_starts(segments_BT).long().cumsum(dim=1)

    written_BTHP = x_BTHP * dt_BTH[..., None].to(x_BTHP.dtype)
    x_BKHLP = cut(written_BTHP, chunk).to(dtype)
    heads_per_group = num_heads // B_BTGN.shape[2]
    B_BKHLN = cut(B_BTGN, chunk).to(dtype)
    C_BKHLN = cut(C_BTGN, chunk).to(dtype)
    scores_BKHLS = C_BKHLN @ B_BKHLN.transpose(-1, -2)
    if heads_per_group > 1:
        scores_BKHLS = scores_BKHLS.repeat_interleave(heads_per_group, dim=2)
        B_BKHLN = B_BKHLN.repeat_interleave(heads_per_group, dim=2)
        C_BKHLN = C_BKHLN.repeat_interleave(heads_per_group, dim=2)

    log_BKHL = cut((dt_BTH * A_H.to(dtype))[..., None], chunk)[..., 0].cumsum(-1)
    decay_BKHLS, read_BKHL, write_BKHL = get_decays(log_BKHL, document_BT, chunk)
    within_BKHLP = (scores_BKHLS * decay_BKHLS) @ x_BKHLP
    added_BKHPN = (x_BKHLP * write_BKHL[..., None]).transpose(-1, -2) @ B_BKHLN

    if state_BHPN is None:
        state_BHPN = added_BKHPN.new_zeros(added_BKHPN[:, 0].shape)
    state_BHPN = state_BHPN.to(dtype)
    before = []
    for k in range(x_BKHLP.shape[1]):
        before.append(state_BHPN)
        state_BHPN = torch.addcmul(
            added_BKHPN[:, k], read_BKHL[:, k, :, -1, None, None], state_BHPN
        )
    carried_BKHLP = C_BKHLN @ torch.stack(before, dim=1).transpose(-1, -2)
    y_BKHLP = torch.addcmul(within_BKHLP, carried_BKHLP, read_BKHL[..., None])

    y_BTHP = y_BKHLP.transpose(2, 3).reshape(num_rows, -1, num_heads, num_channels)[:, :num_tokens]
    y_BTHP = y_BTHP.to(x_BTHP.dtype)
    if D_H is not None:
        y_BTHP = y_BTHP + D_H.to(x_BTHP.dtype)[:, None] * x_BTHP
    return y_BTHP, state_BHPN
