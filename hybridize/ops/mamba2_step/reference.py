"""One token of Mamba-2 as the operators that define its parts compute it: the definition.

Legend: B batch, I projected values, H heads, P channels per head, G groups of heads that share B
and C, N state size, E = H P inner width, X = E + 2 G N convolved channels, K taps of the
convolution, W = K - 1 kept inputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridize.ops.causal_conv.reference import causal_conv_reference
from hybridize.ops.gated_norm.reference import gated_norm_reference
from hybridize.ops.segments import get_compute_dtype
from hybridize.ops.ssd.reference import ssd_reference


@torch.no_grad()
def mamba2_step_reference(  # noqa: PLR0913  a layer has this many parameters
    projected_BI: Tensor,
    weight_XK: Tensor,
    bias_X: Tensor | None,
    dt_bias_H: Tensor,
    A_log_H: Tensor,
    D_H: Tensor,
    norm_E: Tensor,
    *,
    num_groups: int,
    eps: float,
    segments_B: Tensor | None = None,
    conv_state_BXW: Tensor | None = None,
    ssd_state_BHPN: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `hybridize.ops.mamba2_step.mamba2_step`; the states handed in stay as they are."""
    dtype = get_compute_dtype(projected_BI.dtype)
    num_heads, inner, conv = len(dt_bias_H), len(norm_E), len(weight_XK)
    segments_B1 = None if segments_B is None else segments_B[:, None]
    z_B1E, xBC_B1X, dt_B1H = projected_BI[:, None].split([inner, conv, num_heads], dim=-1)
    xBC_B1X, conv_state_BXW = causal_conv_reference(
        xBC_B1X, weight_XK, bias_X, segments_BT=segments_B1, state_BDW=conv_state_BXW
    )
    bc = (conv - inner) // 2
    x_B1E, B_B1S, C_B1S = F.silu(xBC_B1X).split([inner, bc, bc], dim=-1)
    y_B1HP, ssd_state_BHPN = ssd_reference(
        x_B1E.unflatten(-1, (num_heads, -1)),
        F.softplus(dt_B1H.to(dtype) + dt_bias_H.to(dtype)),
        -torch.exp(A_log_H.to(dtype)),
        B_B1S.unflatten(-1, (num_groups, -1)),
        C_B1S.unflatten(-1, (num_groups, -1)),
        D_H,
        segments_BT=segments_B1,
        state_BHPN=ssd_state_BHPN,
    )
    y_B1E = gated_norm_reference(y_B1HP.flatten(2), z_B1E, norm_E, num_groups=num_groups, eps=eps)
    return y_B1E[:, 0], conv_state_BXW.contiguous(), ssd_state_BHPN
