"""Merge models of one layout into one, tensor by tensor."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridize.core.errors import ModelError
from hybridize.models.model import Model


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """How models become one."""

    method: str = "linear"
    """Name in MERGES."""
    weights: tuple[float, ...] = ()
    """One for each model, scaled to sum to one; all alike if empty."""


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted mean of tensors of one shape, computed in float64."""
    total = sum(tensor.double() * weight for tensor, weight in zip(tensors, weights, strict=True))
    assert isinstance(total, Tensor)
    return total.to(tensors[0].dtype)


MERGES: dict[str, Callable[[Sequence[Tensor], Sequence[float]], Tensor]] = {"linear": linear}


def run(models: Sequence[Model], settings: MergeSettings, *, name: str = "merge") -> Model:
    """Return a new model whose every tensor is merged from those of `models`.

    Raises:
        ModelError: unknown method, layouts that differ, or weights that do not fit the models.
    """
    if settings.method not in MERGES:
        raise ModelError(f"{settings.method!r} is not a merge method (known: {', '.join(MERGES)}).")
    weights = settings.weights or (1.0,) * len(models)
    if len(weights) != len(models) or sum(weights) <= 0:
        raise ModelError(
            f"merge: {len(weights)} weights {list(weights)} for {len(models)} models. "
            "Give one weight for each model, with a sum above 0."
        )
    for model in models[1:]:
        if model.layout != models[0].layout:
            raise ModelError(
                f"merge: {models[0].name} and {model.name} have different layouts,\n"
                f"  {models[0].layout}\n  {model.layout}\nand only models of one layout can merge."
            )
    shares = [weight / sum(weights) for weight in weights]
    merged = copy.deepcopy(models[0].network)
    states = [model.network.state_dict() for model in models]
    with torch.no_grad():
        for key, tensor in merged.state_dict().items():
            tensor.copy_(MERGES[settings.method]([state[key] for state in states], shares))
    return Model(name, merged, models[0].tokenizer)
