"""The gated delta rule token by token: slow, and the definition of correct.

Legend: B batch, T tokens, H heads, P channels per value, G groups of heads that share queries and
keys, N channels per key.
"""

import torch
from torch import Tensor

from hybridize.ops.segments import find_starts, get_compute_dtype


def gated_delta_rule_reference(
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
    dtype = get_compute_dtype(v_BTHP.dtype)
    heads_per_group = v_BTHP.shape[2] // k_BTGN.shape[2]
    q_BTHN = q_BTGN.to(dtype).repeat_interleave(heads_per_group, dim=2)
    k_BTHN = k_BTGN.to(dtype).repeat_interleave(heads_per_group, dim=2)
    value_BTHP, g_BTH, beta_BTH = v_BTHP.to(dtype), g_BTH.to(dtype), beta_BTH.to(dtype)
    if state_BHPN is None:
        state_BHPN = value_BTHP.new_zeros(*value_BTHP[:, 0].shape, k_BTHN.shape[-1])
    state_BHPN = state_BHPN.to(dtype)
    starts_BT = None
    if segments_BT is not None:
        padding_BT1 = (segments_BT == 0)[..., None]
        g_BTH, beta_BTH = g_BTH.masked_fill(padding_BT1, 0), beta_BTH.masked_fill(padding_BT1, 0)
        starts_BT = find_starts(segments_BT)

    outputs = []
    for t in range(value_BTHP.shape[1]):
        if starts_BT is not None:
            state_BHPN = state_BHPN.masked_fill(starts_BT[:, t, None, None, None], 0)
        key_BH1N = k_BTHN[:, t, :, None, :]
        state_BHPN = state_BHPN * torch.exp(g_BTH[:, t, :, None, None])
        found_BHP = (state_BHPN * key_BH1N).sum(-1)
        change_BHP = beta_BTH[:, t, :, None] * (value_BTHP[:, t] - found_BHP)
        state_BHPN = state_BHPN + change_BHP[..., None] * key_BH1N
        outputs.append((state_BHPN * q_BTHN[:, t, :, None, :]).sum(-1))
    return torch.stack(outputs, dim=1).to(v_BTHP.dtype), state_BHPN
