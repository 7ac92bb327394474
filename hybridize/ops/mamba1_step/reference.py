"""One token of Mamba as the operators that define its parts compute it: the definition.

Legend: B batch, I projected values, E channels, X shared channels, N state size, K taps of the
convolution, W = K - 1 kept inputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridize.ops.causal_conv.reference import causal_conv_reference
from hybridize.ops.segments import get_compute_dtype
from hybridize.ops.selective_scan.reference import selective_scan_reference


@torch.no_grad()
def mamba1_step_reference(  # noqa: PLR0913  a layer has this many parameters
    projected_BI: Tensor,
    dt_BE: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor | None,
    dt_bias_E: Tensor | None,
    A_log_EN: Tensor,
    D_E: Tensor,
    *,
    block: int,
    segments_B: Tensor | None = None,
    conv_state_BEW: Tensor | None = None,
    scan_state_BEN: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `hybridize.ops.mamba1_step.mamba1_step`; the states handed in stay as they are."""
    dtype = get_compute_dtype(projected_BI.dtype)
    inner, num_states = A_log_EN.shape
    shared = projected_BI.shape[1] // 2 - inner
    segments_B1 = None if segments_B is None else segments_B[:, None]
    z_B1E, x_B1X, B_B1X, C_B1E = projected_BI[:, None].split([inner, shared, shared, inner], dim=-1)
    x_B1E, B_B1E = (
        values_B1X.unflatten(-1, (-1, block)).repeat_interleave(inner // shared, dim=2).flatten(2)
        for values_B1X in (x_B1X, B_B1X)
    )
    x_B1E, conv_state_BEW = causal_conv_reference(
        x_B1E, weight_EK, bias_E, segments_BT=segments_B1, state_BDW=conv_state_BEW
    )
    dt_B1E = dt_BE.to(dtype)[:, None]
    y_B1E, scan_state_BEN = selective_scan_reference(
        F.silu(x_B1E),
        F.softplus(dt_B1E if dt_bias_E is None else dt_B1E + dt_bias_E.to(dtype)),
        -torch.exp(A_log_EN.to(dtype)),
        B_B1E.unflatten(-1, (-1, num_states)),
        C_B1E.unflatten(-1, (-1, num_states)),
        D_E.to(dtype),
        segments_BT=segments_B1,
        state_BDN=scan_state_BEN,
    )
    return (y_B1E * F.silu(z_B1E))[:, 0], conv_state_BEW.contiguous(), scan_state_BEN
