"""Short depthwise causal convolution, in which documents packed in one row do not see each other.

Legend: B batch, T tokens, D channels, W kept inputs (kernel width - 1).
"""

from torch import Tensor

from hybridize.ops.causal_conv.chunked import causal_conv_chunked
from hybridize.ops.causal_conv.reference import causal_conv_reference


def causal_conv(
    x_BTD: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None,
    *,
    segments_BT: Tensor | None = None,
    state_BDW: Tensor | None = None,
    form: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own taps; the last tap meets the current token.

    Args:
        x_BTD: inputs.
        weight_DW: taps per channel, width = kept inputs + 1, oldest first.
        bias_D: added to each output.
        segments_BT: document number per token, 0 for padding; None is one document per row.
        state_BDW: the inputs before the first token, oldest first; None is zeros.
        form: "reference" (token loop), "chunked" (shifted products) or "auto".

    Returns: outputs (B, T, D), finite but meaningless at padding, and the last kept inputs of the
        last document.
    """
    if form not in ("auto", "reference", "chunked"):
        raise ValueError(f"causal_conv has no form {form!r}; use auto, reference or chunked")
    run = causal_conv_reference if form == "reference" else causal_conv_chunked
    return run(x_BTD, weight_DW, bias_D, segments_BT=segments_BT, state_BDW=state_BDW)
