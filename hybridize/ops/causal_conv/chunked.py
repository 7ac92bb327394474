"""The causal convolution as a few shifted products over the whole row.

Legend: B batch, T tokens, D channels, W kept inputs (kernel width - 1), S = W + T.
"""

from typing import Any

import torch
import torch.nn.functional as F
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
    input_BSD = torch.cat([state_BDW.to(x_BTD.dtype).transpose(1, 2), x_BTD], dim=1)
    if segments_BT is None:
        y_BTD = _Taps.apply(input_BSD, weight_DW, None)
        kept_BDW = input_BSD[:, num_tokens:].transpose(1, 2)
    else:
        document_BS = _number_documents(segments_BT, num_kept)
        y_BTD = _Taps.apply(input_BSD, weight_DW, _find_foreign(document_BS, num_kept))
        kept_BDW = _keep_last(input_BSD, segments_BT, document_BS, num_kept)
    return (y_BTD if bias_D is None else y_BTD + bias_D), kept_BDW


class _Taps(torch.autograd.Function):
    """The sum over taps of a shifted row times a weight per channel, without the foreign tokens.

    Written out because recording it would keep a copy of the row for every tap.
    """

    @staticmethod
    def forward(
        ctx: Any, input_BSD: Tensor, weight_DW: Tensor, foreign: list[tuple[Tensor, ...]] | None
    ) -> Tensor:
        ctx.save_for_backward(input_BSD, weight_DW)
        ctx.foreign = foreign
        num_kept = weight_DW.shape[1] - 1
        y_BTD = input_BSD[:, num_kept:] * weight_DW[:, num_kept]
        for tap in range(num_kept):
            shifted_BTD = input_BSD[:, tap : tap + y_BTD.shape[1]]
            y_BTD.addcmul_(_blank(shifted_BTD, foreign, tap), weight_DW[:, tap])
        return y_BTD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        input_BSD, weight_DW = ctx.saved_tensors
        num_tokens, num_kept = grads[0].shape[1], weight_DW.shape[1] - 1
        grad_BTD = grads[0] if ctx.foreign is None else grads[0].clone()
        product_BTD = torch.empty_like(grad_BTD)
        grad_input_BSD, grad_weight_DW = torch.zeros_like(input_BSD), torch.empty_like(weight_DW)
        for tap in reversed(range(num_kept + 1)):
            if ctx.foreign is not None and tap < num_kept:
                grad_BTD[ctx.foreign[tap]] = 0  # a farther tap meets all foreign tokens of a nearer
            grad_input_BSD[:, tap : tap + num_tokens].addcmul_(grad_BTD, weight_DW[:, tap])
            torch.mul(grad_BTD, input_BSD[:, tap : tap + num_tokens], out=product_BTD)
            grad_weight_DW[:, tap] = product_BTD.sum((0, 1))
        return grad_input_BSD, grad_weight_DW, None


def _blank(values_BTD: Tensor, foreign: list[tuple[Tensor, ...]] | None, tap: int) -> Tensor:
    """Return the values with zeros where this tap would reach into another document."""
    if foreign is None:
        return values_BTD
    values_BTD = values_BTD.clone()
    values_BTD[foreign[tap]] = 0
    return values_BTD


def _find_foreign(document_BS: Tensor, num_kept: int) -> list[tuple[Tensor, ...]]:
    """List for each tap the (rows, tokens) whose input at that tap is of another document."""
    own_BT = document_BS[:, num_kept:]
    num_tokens = own_BT.shape[1]
    return [
        (document_BS[:, tap : tap + num_tokens] != own_BT).nonzero(as_tuple=True)
        for tap in range(num_kept)
    ]


def _number_documents(segments_BT: Tensor, num_kept: int) -> Tensor:
    """Count documents along each row; the kept inputs in front belong to document 0."""
    return F.pad(find_starts(segments_BT).long().cumsum(dim=1), (num_kept, 0))


def _keep_last(
    input_BSD: Tensor, segments_BT: Tensor, document_BS: Tensor, num_kept: int
) -> Tensor:
    """Take the last inputs of the last document, zeros where the document is shorter."""
    num_real_B1 = (segments_BT != 0).sum(dim=1, keepdim=True)
    index_BW = num_real_B1 + torch.arange(num_kept, device=input_BSD.device)
    last_B1 = document_BS.gather(1, num_real_B1 + num_kept - 1)
    same_BW = document_BS.gather(1, index_BW) == last_B1
    kept_BWD = input_BSD.gather(1, index_BW[..., None].expand(-1, -1, input_BSD.shape[2]))
    return (kept_BWD * same_BW[..., None]).transpose(1, 2)
