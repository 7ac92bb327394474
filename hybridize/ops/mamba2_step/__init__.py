"""One token of Mamba-2, from its projected inputs to its normed output: what decoding repeats.

Legend: B batch, I projected values, H heads, P channels per head, G groups of heads that share B
and C, N state size, E = H P inner width, X = E + 2 G N convolved channels, K taps of the
convolution, W = K - 1 kept inputs; I = E + X + H.

Apart, its parts cost some forty calls for a few thousand multiplications; here they are one call.
"""

from torch import Tensor

from hybridize.ops.forms import Form, choose

FORMS = {
    "compiled": Form(
        place="hybridize.ops.mamba2_step.compiled:mamba2_step_compiled",
        devices=("cpu",),
        obstacle="hybridize.ops.mamba2_step.compiled:find_obstacle",
        speedup=8,
    ),
    "reference": Form(place="hybridize.ops.mamba2_step.reference:mamba2_step_reference"),
}
"""The fastest first."""


def mamba2_step(  # noqa: PLR0913  a layer has this many parameters
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
    form: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Run gated_norm(ssd(silu(causal_conv(x, B, C)), softplus(dt + dt_bias), -exp(A_log), D), z).

    No gradient passes through it. The states that are handed in are given up: a form may write over
    them and return the same tensors, so go on with what is returned and copy what you want to keep.

    Args:
        projected_BI: z (E), then x (E), B and C (G N each), then dt (H) of one token per row.
        weight_XK: taps of the convolution, the last for this token.
        bias_X: bias of the convolution, or None.
        dt_bias_H: added to dt.
        A_log_H: logarithm of minus the decay rate per unit of dt.
        D_H: weight of the token's own value.
        norm_E: scale of each channel of the norm, whose groups are those of the heads.
        num_groups: G.
        eps: added to the mean squares of the norm.
        segments_B: 0 for rows whose token is padding, which leaves their states as they were;
            None if all are tokens.
        conv_state_BXW: earlier inputs of the convolution; None is zeros.
        ssd_state_BHPN: state before the token; None is zeros.
        form: a name in FORMS, or "auto" for the fastest that can run; see `hybridize.ops.forms`.

    Returns:
        outputs (B, E), finite but meaningless at padding; the kept inputs in the dtype of
        projected_BI; and the state in float32, or float64 for float64 inputs.
    """
    run = choose("mamba2_step", FORMS, form, device=projected_BI.device, num_tokens=1)
    return run(
        *(projected_BI, weight_XK, bias_X, dt_bias_H, A_log_H, D_H, norm_E),
        num_groups=num_groups,
        eps=eps,
        segments_B=segments_B,
        conv_state_BXW=conv_state_BXW,
        ssd_state_BHPN=ssd_state_BHPN,
    )
