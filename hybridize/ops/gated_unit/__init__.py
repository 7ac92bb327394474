"""Gated unit of an MLP: silu(gate) times up, value by value."""

from torch import Tensor

from hybridize.ops.forms import Form, choose

FORMS = {
    "compiled": Form(
        place="hybridize.ops.gated_unit.compiled:gated_unit_compiled",
        devices=("cpu",),
        obstacle="hybridize.ops.gated_unit.compiled:find_obstacle",
        speedup=2,
    ),
    "reference": Form(place="hybridize.ops.gated_unit.reference:gated_unit_reference"),
}
"""The fastest first."""


def gated_unit(gate_BTF: Tensor, up_BTF: Tensor, *, form: str = "auto") -> Tensor:
    """Return silu(gate) up (Shazeer 2020, arXiv 2002.05202, SwiGLU), F channels of an MLP.

    Args:
        gate_BTF: the gate before its activation.
        up_BTF: what is gated, of the same shape and precision.
        form: a name in FORMS, or "auto" for the fastest that can run; see `hybridize.ops.forms`.

    Returns: (B, T, F), in the precision of the inputs.
    """
    run = choose("gated_unit", FORMS, form, device=up_BTF.device, num_tokens=up_BTF.shape[1])
    return run(gate_BTF, up_BTF)
