"""Gated norm of Mamba-2: gate with silu(z), then divide each group of channels by its size.

Without a gate and with one group it is the RMS norm of a layer.

Legend: B batch, T tokens, E channels, G groups of channels.
"""

from torch import Tensor

from hybridize.ops.forms import Form, choose

FORMS = {
    "compiled": Form(
        place="hybridize.ops.gated_norm.compiled:gated_norm_compiled",
        devices=("cpu",),
        obstacle="hybridize.ops.gated_norm.compiled:find_obstacle",
        speedup=3,
    ),
    "reference": Form(place="hybridize.ops.gated_norm.reference:gated_norm_reference"),
}
"""The fastest first."""


def gated_norm(
    y_BTE: Tensor,
    z_BTE: Tensor | None,
    weight_E: Tensor,
    *,
    num_groups: int,
    eps: float,
    form: str = "auto",
) -> Tensor:
    """Return weight u / sqrt(mean of u^2 over the channels of a group + eps), u = y silu(z).

    Args:
        y_BTE: what is normed.
        z_BTE: the gate; None gates nothing, u = y.
        weight_E: scale of each channel.
        num_groups: runs of E / G channels, each with a mean of its own.
        eps: added to each mean.
        form: a name in FORMS, or "auto" for the fastest that can run; see `hybridize.ops.forms`.

    Returns: (B, T, E); computed in float32, or in float64 for float64 inputs.
    """
    run = choose("gated_norm", FORMS, form, device=y_BTE.device, num_tokens=y_BTE.shape[1])
    return run(y_BTE, z_BTE, weight_E, num_groups=num_groups, eps=eps)
