"""Losses between a student's layers and those of its teacher, token by token.

Legend: B rows, T tokens, N counted tokens, D model width.

The error of a token is |student - teacher|^2 / |teacher|^2: 0 where both agree, 1 for a student
that says nothing. It is taken at the tokens whose next token counts, like every other loss, so that
one count divides the whole mixture. What it keeps in memory is N x D values of each layer and model
beside what training keeps anyway; for mixer outputs of a student B x T x D.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hybridize.core.errors import ModelError
from hybridize.training.distributed import find_layers

SMALLEST = 1e-12
"""Least squared length of a teacher's state that an error is divided by."""

Keep = Callable[[Tensor], None]


@dataclass(frozen=True)
class LayerLoss:
    """A loss between what the layers of two models hold."""

    watch: Callable[[Any, Keep], AbstractContextManager[None]]
    """(layer, keep): for the time of a `with` block, pass each state_BTD of the layer to `keep`."""


@contextmanager
def _watch_output(layer: nn.Module, keep: Keep) -> Iterator[None]:
    handle = layer.register_forward_hook(lambda _layer, _inputs, output_BTD: keep(output_BTD))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _watch_mixer(layer: Any, keep: Keep) -> Iterator[None]:
    if not hasattr(layer, "mix"):
        raise ModelError(
            f"a {type(layer).__name__} has no `mix`, so the outputs of its mixer cannot be "
            "compared. Use hidden_states."
        )
    mix = layer.mix

    def mix_and_keep(*inputs: Any) -> Tensor:
        mixed_BTD: Tensor = mix(*inputs)
        keep(mixed_BTD)
        return mixed_BTD

    layer.mix = mix_and_keep
    try:
        yield
    finally:
        del layer.mix


hidden_states = LayerLoss(_watch_output)
"""The residual stream after each layer."""
mixer_outputs = LayerLoss(_watch_mixer)
"""What each mixer adds to the residual stream, before any norm or scale after it."""


@dataclass
class States:
    """What the layers of a model held while it ran."""

    places_N: Tensor
    """Which of the B x T tokens are compared."""
    _kept: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def keep(self, name: str, layer: int, state_BTD: Tensor) -> None:
        """Keep the state of one layer."""
        # A layer that is computed again in the backward pass has to find there what it did here,
        # and nothing more: its states are picked afterwards.
        self._kept[name, layer] = state_BTD if state_BTD.requires_grad else self._pick(state_BTD)

    def get(self, name: str, layer: int) -> Tensor:
        """Return the state (N, D) of one layer, in float32 at least."""
        state = self._kept[name, layer]
        state_ND = state if state.ndim == 2 else self._pick(state)
        return state_ND.to(torch.promote_types(state_ND.dtype, torch.float32))

    def _pick(self, state_BTD: Tensor) -> Tensor:
        return state_BTD.flatten(0, 1)[self.places_N]


@contextmanager
def watched(
    model: nn.Module,
    losses: Mapping[str, LayerLoss],
    layers: Mapping[str, Collection[int]],
    places_N: Tensor,
) -> Iterator[States]:
    """Keep what the layers of a model hold while it runs in a `with` block.

    Args:
        layers: of each loss, from 0.

    Raises:
        ModelError: the model has no such layer, or its layers do not tell.
    """
    states, modules = States(places_N), find_layers(model)
    with ExitStack() as stack:
        for name, loss in losses.items():
            for layer in layers[name]:
                if layer >= len(modules):
                    raise ModelError(
                        f"{name}: there is no layer {layer}; layers are 0 to {len(modules) - 1}."
                    )
                stack.enter_context(loss.watch(modules[layer], partial(states.keep, name, layer)))
        yield states


def compare(student: States, teacher: States, name: str, weights: Mapping[int, float]) -> Tensor:
    """Sum the errors of one loss over tokens and layers, each layer with its weight.

    Raises:
        ModelError: the states are not of one width.
    """
    total = torch.zeros((), device=student.places_N.device)
    for layer, weight in weights.items():
        student_ND, teacher_ND = student.get(name, layer), teacher.get(name, layer)
        if student_ND.shape != teacher_ND.shape:
            raise ModelError(
                f"{name}, layer {layer}: the student's states have {student_ND.shape[-1]} values, "
                f"the teacher's {teacher_ND.shape[-1]}. Compare models of one width."
            )
        size_N = teacher_ND.square().sum(-1).clamp_min(SMALLEST)
        error_N = (student_ND - teacher_ND).square().sum(-1) / size_N
        total = total + weight * error_N.sum()
    return total
