"""Fit fresh mixers to the attention they replace, in closed form, from a few rows of text.

Legend: N real tokens, D model width, E inner width of a mixer.

A mixer that is filled from attention still starts with a random gate, which multiplies its output
by noise, and with an output projection made for softmax averages. Both can be set right without
training: the rows of the gate become the linear map of the layer's input that is nearest to a
constant, and the output projection is scaled, or solved for, so that the mixer's output is as large
as, or as near as possible to, the attention's. These are least-squares problems of the model's
width, solved layer by layer.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridize.core.errors import ModelError
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.mixers.gated_delta import GatedDelta
from hybridize.models.mixers.mamba1 import Mamba1
from hybridize.models.mixers.mamba2 import Mamba2

Gated = GatedDelta | Mamba1 | Mamba2
"""The mixers that have a gate and an output projection."""
OPEN_GATE = 2.0
"""Where an open gate's input is held; silu(2) = 1.76, with a slope near 1."""
OPEN_WRITE = math.log(0.9 / 0.1)
"""Where the input of a gated delta rule's writing strength is held; its sigmoid is 0.9."""
RIDGE = 1e-2
"""Share of the mean square of the inputs that is added to it, so that few rows of text suffice."""


@dataclass(frozen=True)
class LayerFit:
    """How near one mixer comes to the attention it replaces, on the text it was fitted to."""

    layer: int
    error_before: float
    """Root mean square of the difference, relative to that of the attention's output."""
    error: float


@torch.no_grad()
def calibrate(
    student: HybridForCausalLM,
    teacher: HybridForCausalLM,
    input_ids: Tensor,
    segments: Tensor | None = None,
    *,
    layers: Iterable[int] | None = None,
    gate: str = "open",
    output: str = "rms",
) -> tuple[LayerFit, ...]:
    """Set gates and output projections of converted layers; the student is changed in place.

    Args:
        student: as `convert` made it, before any training.
        teacher: the model with attention in these layers.
        input_ids: text (B, T); some thousand tokens are enough for widths of some hundreds.
        segments: document of each token, 0 for padding.
        layers: None is every converted layer with a gate and an output projection.
        gate: "open" makes the gate nearly constant and positive, and the writing strength of a
            gated delta rule nearly constant; "random" leaves them as drawn.
        output: "rms" scales the output projection until its output is as large as the attention's,
            "least_squares" solves for it, "copied" leaves it as it is. Solving is nearest to the
            teacher before any training; after some ten steps of it, scaling is as good.

    Raises:
        ModelError: an option that does not exist, or a layer that cannot be fitted.
    """
    if gate not in ("open", "random") or output not in ("least_squares", "rms", "copied"):
        raise ModelError(
            f"gate {gate!r} or output {output!r} does not exist; use gate open or random, "
            "output least_squares, rms or copied."
        )
    states: list[Tensor] = []
    teacher.hidden(input_ids, segments, states)
    ctx = teacher.make_context(states[0], segments_BT=segments)
    real_BT = torch.ones_like(input_ids) == 1 if segments is None else segments != 0
    fits = []
    for layer in list_gated(student, teacher) if layers is None else layers:
        mixer = _get_mixer(student, layer)
        original = teacher.model.layers[layer]
        input_BTD = original.normalize(states[layer], original.norms.before_mixer)
        wanted_ND = original.mix(input_BTD, ctx)[real_BT]
        before = _measure(mixer(input_BTD, ctx)[real_BT], wanted_ND)
        if gate == "open":
            unit_D = _fit_constant(input_BTD[real_BT])
            mixer.gate_rows()[:] = OPEN_GATE * unit_D
            if isinstance(mixer, GatedDelta):
                mixer.in_proj_b.weight[:] = OPEN_WRITE * unit_D
        features: list[Tensor] = []
        hook = mixer.out_proj.register_forward_pre_hook(
            lambda _, args, kept=features: kept.append(args[0])
        )
        mixer(input_BTD, ctx)
        hook.remove()
        _fit_output(mixer.out_proj.weight, features[0][real_BT], wanted_ND, output)
        fits.append(LayerFit(layer, before, _measure(mixer(input_BTD, ctx)[real_BT], wanted_ND)))
    return tuple(fits)


def list_gated(student: HybridForCausalLM, teacher: HybridForCausalLM) -> list[int]:
    """List the converted layers that can be calibrated: those whose mixer has a gate."""
    return [
        layer
        for layer in student.layout.diff(teacher.layout)
        if isinstance(getattr(student.model.layers[layer], "mixer", None), Gated)
    ]


def _get_mixer(student: HybridForCausalLM, layer: int) -> Gated:
    mixer = getattr(student.model.layers[layer], "mixer", None)
    if not isinstance(mixer, Gated):
        raise ModelError(
            f"layer {layer} holds {student.layout.mixers[layer]}, which has no gate to calibrate. "
            "Only gated_delta, mamba1 and mamba2 are calibrated."
        )
    return mixer


def _measure(found_ND: Tensor, wanted_ND: Tensor) -> float:
    return ((found_ND.float() - wanted_ND.float()).norm() / wanted_ND.float().norm()).item()


def _fit_constant(input_ND: Tensor) -> Tensor:
    """Return the vector (D,) whose product with the inputs is nearest to 1, and 1 on average."""
    input_ND = input_ND.double()
    mean_D = input_ND.mean(dim=0)
    row_D = torch.linalg.solve(_add_ridge(input_ND.T @ input_ND / len(input_ND)), mean_D)
    return row_D / (row_D @ mean_D)


def _fit_output(weight_DE: Tensor, features_NE: Tensor, wanted_ND: Tensor, output: str) -> None:
    """Scale the projection, and solve for the correction that is left, towards what is wanted."""
    if output == "copied":
        return
    features_NE, wanted_ND = features_NE.double(), wanted_ND.double()
    copied_DE = weight_DE.double()
    copied_DE = copied_DE * (wanted_ND.norm() / (features_NE @ copied_DE.T).norm())
    if output == "least_squares":
        missing_ND = wanted_ND - features_NE @ copied_DE.T
        square_EE = _add_ridge(features_NE.T @ features_NE / len(features_NE))
        cross_ED = features_NE.T @ missing_ND / len(features_NE)
        copied_DE = copied_DE + torch.linalg.solve(square_EE, cross_ED).T
    weight_DE.copy_(copied_DE)


def _add_ridge(square_XX: Tensor) -> Tensor:
    return square_XX + RIDGE * square_XX.diagonal().mean() * torch.eye(
        len(square_XX), dtype=square_XX.dtype, device=square_XX.device
    )
