"""One token of Gated DeltaNet as the operators that define its parts compute it: the definition.

Legend: B batch, H heads of values, P channels per head, G groups of heads that share queries and
keys, E = H P inner width, X = 2 G P + E convolved channels, K taps of the convolution, W = K - 1
kept inputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridize.ops.causal_conv.reference import causal_conv_reference
from hybridize.ops.gated_delta_rule.reference import gated_delta_rule_reference
from hybridize.ops.segments import get_compute_dtype


@torch.no_grad()
def gated_delta_step_reference(  # noqa: PLR0913  a layer has this many parameters
    qkv_BX: Tensor,
    z_BE: Tensor,
    b_BH: Tensor,
    a_BH: Tensor,
    weight_XK: Tensor,
    bias_X: Tensor | None,
    dt_bias_H: Tensor,
    A_log_H: Tensor,
    norm_P: Tensor,
    *,
    eps: float,
    length_eps: float,
    segments_B: Tensor | None = None,
    conv_state_BXW: Tensor | None = None,
    delta_state_BHPN: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `hybridize.ops.gated_delta_step.gated_delta_step`; the states stay as they are."""
    dtype = get_compute_dtype(qkv_BX.dtype)
    inner, head_dim = z_BE.shape[1], len(norm_P)
    keys = (qkv_BX.shape[1] - inner) // 2
    segments_B1 = None if segments_B is None else segments_B[:, None]
    qkv_B1X, conv_state_BXW = causal_conv_reference(
        qkv_BX[:, None], weight_XK, bias_X, segments_BT=segments_B1, state_BDW=conv_state_BXW
    )
    q_B1GN, k_B1GN, v_B1HP = (
        values_B1S.unflatten(-1, (-1, head_dim))
        for values_B1S in F.silu(qkv_B1X).split([keys, keys, inner], dim=-1)
    )
    dt_B1H = F.softplus(a_BH.to(dtype) + dt_bias_H.to(dtype))[:, None]
    y_B1HP, delta_state_BHPN = gated_delta_rule_reference(
        _scale(q_B1GN.to(dtype), length_eps) * head_dim**-0.5,
        _scale(k_B1GN.to(dtype), length_eps),
        v_B1HP,
        -torch.exp(A_log_H.to(dtype)) * dt_B1H,
        b_BH.to(dtype).sigmoid()[:, None],
        segments_BT=segments_B1,
        state_BHPN=delta_state_BHPN,
    )
    wide_BHP = y_B1HP[:, 0].to(dtype)
    wide_BHP = wide_BHP * torch.rsqrt(wide_BHP.square().mean(-1, keepdim=True) + eps)
    gate_BHP = F.silu(z_BE.to(dtype)).unflatten(-1, (-1, head_dim))
    y_BHP = (norm_P * wide_BHP.to(y_B1HP.dtype) * gate_BHP).to(y_B1HP.dtype)
    return y_BHP.flatten(1), conv_state_BXW.contiguous(), delta_state_BHPN


def _scale(values_B1GN: Tensor, eps: float) -> Tensor:
    return values_B1GN * torch.rsqrt(values_B1GN.square().sum(-1, keepdim=True) + eps)
