"""The causal convolution as a few shifted products over the whole row.

Legend: B batch, T tokens, D channels, W kept inputs (kernel width - 1).
"""

import torch
from torch import Tensor

from hybridize.ops.segments import find_starts, has_gaps


def causal_conv_chunked(
    x_BTD: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None,
    *,
    segments_BT: Tensor | None = None,
    state_BDW: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `hybridize.ops.causal_conv.causal_conv`."""
    if segments_BT is None or not has_gaps(segments_BT):
        return _convolve(x_BTD, weight_DW, bias_D, segments_BT, state_BDW)
    # Padding before or between tokens: move it to the end of its row, convolve, and move it back.
    order_BT = torch.argsort((segments_BT == 0).long(), dim=1, stable=True)
    back_BT = torch.argsort(order_BT, dim=1)
    x_BTD = x_BTD.gather(1, order_BT[..., None].expand_as(x_BTD))
    segments_BT = segments_BT.gather(1, order_BT)
    y_BTD, state_BDW = _convolve(x_BTD, weight_DW, bias_D, segments_BT, state_BDW)
    return y_BTD.gather(1, back_BT[..., None].expand_as(y_BTD)), state_BDW


def _convolve(
    x_BTD: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None,
    segments_BT: Tensor | None,
    state_BDW: Tensor | None,
) -> tuple[Tensor, Tensor]:
    num_rows, num_tokens, num_channels = x_BTD.shape
    num_kept = weight_DW.shape[1] - 1
    if state_BDW is None:
        state_BDW = x_BTD.new_zeros(num_rows, num_channels, num_kept)
    input_BTD = torch.cat([state_BDW.to(x_BTD.dtype).transpose(1, 2), x_BTD], dim=1)
    document_BT = None if segments_BT is None else _number_documents(segments_BT, num_kept)

    y_BTD = x_BTD * weight_DW[:, num_kept]
    for tap in range(num_kept):
        shifted_BTD = input_BTD[:, tap : tap + num_tokens]
        if document_BT is not None:
            same_BT = document_BT[:, tap : tap + num_tokens] == document_BT[:, num_kept:]
            shifted_BTD = shifted_BTD * same_BT[..., None]
        y_BTD = torch.addcmul(y_BTD, shifted_BTD, weight_DW[:, tap])
    if bias_D is not None:
        y_BTD = y_BTD + bias_D
    if segments_BT is None or document_BT is None:
        return y_BTD, input_BTD[:, num_tokens:].transpose(1, 2)
    return y_BTD, _keep_last(input_BTD, segments_BT, document_BT, num_kept)


def _number_documents(segments_BT: Tensor, num_kept: int) -> Tensor:
    """Count documents along each row; the kept inputs in front belong to document 0."""
    document_BT = find_starts(segments_BT).long().cumsum(dim=1)
    return torch.nn.functional.pad(document_BT, (num_kept, 0))


def _keep_last(
    input_BTD: Tensor, segments_BT: Tensor, document_BT: Tensor, num_kept: int
) -> Tensor:
    """Take the last inputs of the last document, zeros where the document is shorter."""
    num_real_B1 = (segments_BT != 0).sum(dim=1, keepdim=True)
    index_BW = num_real_B1 + torch.arange(num_kept, device=input_BTD.device)
    last_B1 = document_BT.gather(1, num_real_B1 + num_kept - 1)
    same_BW = document_BT.gather(1, index_BW) == last_B1
    kept_BWD = input_BTD.gather(1, index_BW[..., None].expand(-1, -1, input_BTD.shape[2]))
    return (kept_BWD * same_BW[..., None]).transpose(1, 2)
