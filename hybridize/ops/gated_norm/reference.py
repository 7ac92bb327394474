"""The gated norm in plain PyTorch: the definition of correct.

Legend: B batch, T tokens, E channels, G groups of channels, P channels per group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridize.ops.segments import get_compute_dtype


def gated_norm_reference(
    y_BTE: Tensor, z_BTE: Tensor | None, weight_E: Tensor, *, num_groups: int, eps: float
) -> Tensor:
    """See `hybridize.ops.gated_norm.gated_norm`."""
    dtype = get_compute_dtype(y_BTE.dtype)
    gated_BTE = y_BTE.to(dtype)
    if z_BTE is not None:
        gated_BTE = gated_BTE * F.silu(z_BTE.to(dtype))
    gated_BTGP = gated_BTE.unflatten(-1, (num_groups, -1))
    scale_BTG1 = torch.rsqrt(gated_BTGP.square().mean(-1, keepdim=True) + eps)
    return weight_E * (gated_BTGP * scale_BTG1).flatten(2).to(y_BTE.dtype)
