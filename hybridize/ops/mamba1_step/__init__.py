"""One token of Mamba with shared values and keys, between its projections: what decoding repeats.

Legend: B batch, I projected values, E channels, X shared channels, N state size, K taps of the
convolution, W = K - 1 kept inputs; I = 2 E + 2 X.
"""

from torch import Tensor

from hybridize.ops.forms import Form, choose

FORMS = {
    "compiled": Form(
        place="hybridize.ops.mamba1_step.compiled:mamba1_step_compiled",
        devices=("cpu",),
        obstacle="hybridize.ops.mamba1_step.compiled:find_obstacle",
        speedup=8,
    ),
    "reference": Form(place="hybridize.ops.mamba1_step.reference:mamba1_step_reference"),
}
"""The fastest first."""


def mamba1_step(  # noqa: PLR0913  a layer has this many parameters
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
    form: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Run selective_scan(silu(causal_conv(x)), softplus(dt + dt_bias), A, B, C, D) silu(z).

    Here A is -exp(A_log). No gradient passes through it. The states that are handed in are given
    up: a form may write over them and return the same tensors, so go on with what is returned and
    copy what you want to keep.

    Args:
        projected_BI: z (E), then x and B (X each), then C (E) of one token per row. Runs of `block`
            values of x and of B are repeated, each E / X times in place.
        dt_BE: step sizes before dt_bias and softplus.
        weight_EK: taps of the convolution, the last for this token.
        bias_E: bias of the convolution, or None.
        dt_bias_E: added to dt, or None.
        A_log_EN: logarithm of minus the decay rates.
        D_E: weight of the token's own value.
        block: a multiple of N that divides X.
        segments_B: 0 for rows whose token is padding, which leaves their states as they were;
            None if all are tokens.
        conv_state_BEW: earlier inputs of the convolution; None is zeros.
        scan_state_BEN: state before the token; None is zeros.
        form: a name in FORMS, or "auto" for the fastest that can run; see `hybridize.ops.forms`.

    Returns:
        outputs (B, E), finite but meaningless at padding; the kept inputs in the dtype of
        projected_BI; and the state in float32, or float64 for float64 inputs.
    """
    run = choose("mamba1_step", FORMS, form, device=projected_BI.device, num_tokens=1)
    return run(
        *(projected_BI, dt_BE, weight_EK, bias_E, dt_bias_E, A_log_EN, D_E),
        block=block,
        segments_B=segments_B,
        conv_state_BEW=conv_state_BEW,
        scan_state_BEN=scan_state_BEN,
    )
