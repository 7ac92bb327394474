"""One token of Gated DeltaNet, between its projections: what decoding repeats.

Legend: B batch, H heads of values, P channels per head, G groups of heads that share queries and
keys, E = H P inner width, X = 2 G P + E convolved channels, K taps of the convolution, W = K - 1
kept inputs.

Apart, its parts cost some fifty calls for a few thousand multiplications; here they are one call.
"""

from torch import Tensor

from hybridize.ops.forms import Form, choose

FORMS = {
    "compiled": Form(
        place="hybridize.ops.gated_delta_step.compiled:gated_delta_step_compiled",
        devices=("cpu",),
        obstacle="hybridize.ops.gated_delta_step.compiled:find_obstacle",
        speedup=8,
    ),
    "reference": Form(place="hybridize.ops.gated_delta_step.reference:gated_delta_step_reference"),
}
"""The fastest first."""


def gated_delta_step(  # noqa: PLR0913  a layer has this many parameters
    qkv_BX: Tensor,
    z_BE: Tensor,
    b_BH: Tensor,
    a_BH: Tensor,
    weight_XK: Tensor,
    bias_X: Tensor | None,
    dt_bias_H: Tensor,
    A_log_H: Tensor,
    norm_P: Tensor,
    *,
    eps: float,
    length_eps: float,
    segments_B: Tensor | None = None,
    conv_state_BXW: Tensor | None = None,
    delta_state_BHPN: Tensor | None = None,
    form: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Run norm(gated_delta_rule(q / (|q| sqrt(P)), k / |k|, v, g, sigmoid(b))) silu(z).

    Here q, k and v are silu(causal_conv(qkv)) and g is -exp(A_log) softplus(a + dt_bias); the norm
    is the RMS norm of a head. No gradient passes through it. The states that are handed in are
    given up: a form may write over them and return the same tensors, so go on with what is returned
    and copy what you want to keep.

    Args:
        qkv_BX: queries and keys (G P each), then values (E) of one token per row.
        z_BE: the gate.
        b_BH: writing strength before its sigmoid.
        a_BH: step size before dt_bias and softplus.
        weight_XK: taps of the convolution, the last for this token.
        bias_X: bias of the convolution, or None.
        dt_bias_H: added to a.
        A_log_H: logarithm of minus the decay rate per unit of the step size.
        norm_P: scale of each channel of the norm, the same in all heads.
        eps: added to the mean squares of the norm.
        length_eps: added to the squared lengths of queries and keys.
        segments_B: 0 for rows whose token is padding, which leaves their states as they were;
            None if all are tokens.
        conv_state_BXW: earlier inputs of the convolution; None is zeros.
        delta_state_BHPN: state before the token, of which N is P; None is zeros.
        form: a name in FORMS, or "auto" for the fastest that can run; see `hybridize.ops.forms`.

    Returns:
        outputs (B, E), finite but meaningless at padding; the kept inputs in the dtype of qkv_BX;
        and the state in float32, or float64 for float64 inputs.
    """
    run = choose("gated_delta_step", FORMS, form, device=qkv_BX.device, num_tokens=1)
    return run(
        *(qkv_BX, z_BE, b_BH, a_BH, weight_XK, bias_X, dt_bias_H, A_log_H, norm_P),
        eps=eps,
        length_eps=length_eps,
        segments_B=segments_B,
        conv_state_BXW=conv_state_BXW,
        delta_state_BHPN=delta_state_BHPN,
    )
