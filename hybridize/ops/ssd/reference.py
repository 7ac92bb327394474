"""The recurrence of Mamba-2 token by token: slow, and the definition of correct.

Legend: B batch, T tokens, H heads, P channels per head, G groups of heads that share B and C, N
state size.
"""

import torch
from torch import Tensor

from hybridize.ops.segments import find_starts, get_compute_dtype


def ssd_reference(
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
    dtype = get_compute_dtype(x_BTHP.dtype)
    heads_per_group = x_BTHP.shape[2] // B_BTGN.shape[2]
    value_BTHP, dt_BTH, A_H = x_BTHP.to(dtype), dt_BTH.to(dtype), A_H.to(dtype)
    B_BTHN = B_BTGN.to(dtype).repeat_interleave(heads_per_group, dim=2)
    C_BTHN = C_BTGN.to(dtype).repeat_interleave(heads_per_group, dim=2)
    if state_BHPN is None:
        state_BHPN = value_BTHP.new_zeros(*value_BTHP[:, 0].shape, B_BTHN.shape[-1])
    state_BHPN = state_BHPN.to(dtype)
    starts_BT = None
    if segments_BT is not None:
        dt_BTH = dt_BTH.masked_fill((segments_BT == 0)[..., None], 0)
        starts_BT = find_starts(segments_BT)

    outputs = []
    for t in range(x_BTHP.shape[1]):
        if starts_BT is not None:
            state_BHPN = state_BHPN.masked_fill(starts_BT[:, t, None, None, None], 0)
        decay_BH = torch.exp(dt_BTH[:, t] * A_H)
        write_BHP = dt_BTH[:, t, :, None] * value_BTHP[:, t]
        write_BHPN = write_BHP[..., None] * B_BTHN[:, t, :, None, :]
        state_BHPN = decay_BH[..., None, None] * state_BHPN + write_BHPN
        outputs.append((state_BHPN * C_BTHN[:, t, :, None, :]).sum(-1))
    y_BTHP = torch.stack(outputs, dim=1)
    if D_H is not None:
        y_BTHP = y_BTHP + D_H.to(dtype)[:, None] * value_BTHP
    return y_BTHP.to(x_BTHP.dtype), state_BHPN
