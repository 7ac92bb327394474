"""A model without one of its layers, or without the mixer of one, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from hybridize.core.errors import ModelError
from hybridize.models.hybrid import HybridForCausalLM


@contextmanager
def without(model: HybridForCausalLM, layer: int, scope: str = "layer") -> Iterator[None]:
    """Leave a layer, or only its mixer, out of the model for the time of a `with` block.

    Args:
        model: changed in place, and restored at the end.
        layer: from 0.
        scope: "layer" passes the residual stream by the whole layer, "attention" by its mixer.

    Raises:
        ModelError: there is no such layer or scope.
    """
    if scope not in ("layer", "attention"):
        raise ModelError(f"scope {scope!r} does not exist; use layer or attention.")
    if not 0 <= layer < len(model.model.layers):
        last = len(model.model.layers) - 1
        raise ModelError(f"layer {layer} does not exist: the model has layers 0 to {last}.")
    target = model.model.layers[layer]
    before, target.left_out = target.left_out, scope
    try:
        yield
    finally:
        target.left_out = before
