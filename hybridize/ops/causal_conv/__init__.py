"""Short depthwise causal convolution, in which documents packed in one row do not see each other.

Legend: B batch, T tokens, D channels, W kept inputs (kernel width - 1).
"""

from torch import Tensor

from hybridize.ops.forms import Form, choose

FORMS = {
    "triton": Form(
        place="hybridize.ops.causal_conv.triton_form:causal_conv_triton",
        devices=("gpu",),
        obstacle="hybridize.ops.triton_support:find_obstacle",
    ),
    "compiled": Form(
        place="hybridize.ops.causal_conv.compiled:causal_conv_compiled",
        devices=("cpu",),
        obstacle="hybridize.ops.causal_conv.compiled:find_obstacle",
        speedup=6,
    ),
    "chunked": Form(place="hybridize.ops.causal_conv.chunked:causal_conv_chunked", speedup=10),
    "reference": Form(place="hybridize.ops.causal_conv.reference:causal_conv_reference"),
}
"""The fastest first."""


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
        form: a name in FORMS, or "auto" for the fastest that can run; see `hybridize.ops.forms`.

    Returns: outputs (B, T, D), finite but meaningless at padding, and the last kept inputs of the
        last document.
    """
    run = choose("causal_conv", FORMS, form, device=x_BTD.device, num_tokens=x_BTD.shape[1])
    return run(x_BTD, weight_DW, bias_D, segments_BT=segments_BT, state_BDW=state_BDW)
