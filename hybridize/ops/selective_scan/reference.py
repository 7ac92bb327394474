"""The recurrence of Mamba token by token: slow, and the definition of correct.

Legend: B batch, T tokens, D channels, G groups of channels that share B and C, N state size per
channel.
"""

import torch
from torch import Tensor

from hybridize.ops.segments import find_starts, get_compute_dtype


def selective_scan_reference(
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
    num_rows, num_tokens, num_channels = x_BTD.shape
    dtype = get_compute_dtype(x_BTD.dtype)
    channels_per_group = num_channels // B_BTGN.shape[2]
    value_BTD, dt_BTD, A_DN = x_BTD.to(dtype), dt_BTD.to(dtype), A_DN.to(dtype)
    B_BTDN = B_BTGN.to(dtype).repeat_interleave(channels_per_group, dim=2)
    C_BTDN = C_BTGN.to(dtype).repeat_interleave(channels_per_group, dim=2)
    if state_BDN is None:
        state_BDN = value_BTD.new_zeros(num_rows, num_channels, A_DN.shape[1])
    state_BDN = state_BDN.to(dtype)
    starts_BT = None
    if segments_BT is not None:
        dt_BTD = dt_BTD.masked_fill((segments_BT == 0)[..., None], 0)
        starts_BT = find_starts(segments_BT)

    outputs = []
    for t in range(num_tokens):
        if starts_BT is not None:
            state_BDN = state_BDN.masked_fill(starts_BT[:, t, None, None], 0)
        decay_BDN = torch.exp(dt_BTD[:, t, :, None] * A_DN)
        write_BDN = (dt_BTD[:, t] * value_BTD[:, t])[..., None] * B_BTDN[:, t]
        state_BDN = decay_BDN * state_BDN + write_BDN
        outputs.append((state_BDN * C_BTDN[:, t]).sum(-1))
    y_BTD = torch.stack(outputs, dim=1)
    if D_D is not None:
        y_BTD = y_BTD + D_D.to(dtype) * value_BTD
    return y_BTD.to(x_BTD.dtype), state_BDN
