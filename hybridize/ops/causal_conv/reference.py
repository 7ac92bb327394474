"""The causal convolution token by token: slow, and the definition of correct.

Legend: B batch, T tokens, D channels, W kept inputs (kernel width - 1).
"""

import torch
from torch import Tensor

from hybridize.ops.segments import find_starts


def causal_conv_reference(
    x_BTD: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None,
    *,
    segments_BT: Tensor | None = None,
    state_BDW: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `hybridize.ops.causal_conv.causal_conv`."""
    num_rows, num_tokens, num_channels = x_BTD.shape
    window_BDW = x_BTD.new_zeros(num_rows, num_channels, weight_DW.shape[1] - 1)
    if state_BDW is not None:
        window_BDW = state_BDW.to(x_BTD.dtype)
    if segments_BT is None:
        segments_BT = torch.ones(num_rows, num_tokens, dtype=torch.long, device=x_BTD.device)
    starts_BT = find_starts(segments_BT)

    outputs = []
    for t in range(num_tokens):
        window_BDW = window_BDW.masked_fill(starts_BT[:, t, None, None], 0)
        taps_BDW = torch.cat([window_BDW, x_BTD[:, t, :, None]], dim=-1)
        outputs.append((taps_BDW * weight_DW).sum(-1))
        window_BDW = torch.where(
            (segments_BT[:, t] != 0)[:, None, None], taps_BDW[..., 1:], window_BDW
        )
    y_BTD = torch.stack(outputs, dim=1)
    return (y_BTD if bias_D is None else y_BTD + bias_D), window_BDW
