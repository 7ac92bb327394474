"""Memory: what each of many requests has in each layer, in slots that do not touch each other.

Legend: R slots, T tokens, H key-value heads, G query heads, K head width.

States of fixed size lie in one tensor a layer, a row a slot, and are stepped together. Keys and
values of full attention lie in a buffer a request, as long as the request may become; they and any
other memory are looked at request by request, so that nothing depends on who else is served.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hybridize.models.cache import GrowingLayer, HybridCache, StateLayer

STEPPED_TOGETHER = ("mamba1", "mamba2", "gated_delta")
"""Mixers whose states have a size that no length changes."""
ROWS_ATTENTION = "hybridize_rows"
"""Name under which transformers finds `attend_rows`."""


class SlotMemory:
    """The cache of one step of decoding in all slots: what mixers read and leave.

    Args:
        mixers: kind of each layer.
        num_slots: R.
    """

    def __init__(self, mixers: tuple[str, ...], num_slots: int) -> None:
        self.mixers, self.num_slots = mixers, num_slots
        self.together: list[dict[str, Tensor]] = [{} for _ in mixers]
        self.apart: dict[int, list[Any]] = {}

    def is_apart(self, layer: int) -> bool:
        """Tell whether the mixer of a layer takes the requests one by one."""
        return self.mixers[layer] not in (*STEPPED_TOGETHER, "attention", "identity")

    def put(self, slot: int, cache: HybridCache, capacity: int) -> None:
        """Take over what a request has after its prompt; it may grow to `capacity` tokens."""
        apart: list[Any] = []
        layers: list[Any] = list(cache.layers)
        for layer, held in enumerate(layers):
            if self.mixers[layer] in STEPPED_TOGETHER:
                self._put_state(layer, slot, held)
                apart.append(None)
            else:
                if isinstance(held, GrowingLayer):
                    held.reserve(capacity)
                apart.append(held)
        self.apart[slot] = apart

    def _put_state(self, layer: int, slot: int, held: StateLayer) -> None:
        for name, tensor in held.tensors.items():
            if name not in self.together[layer]:
                shape = (self.num_slots, *tensor.shape[1:])
                self.together[layer][name] = tensor.new_zeros(shape)
            self.together[layer][name][slot] = tensor[0]

    def drop(self, slot: int) -> None:
        """Forget a request; its states are overwritten by the next one's."""
        del self.apart[slot]

    def get_state(self, layer: int) -> dict[str, Tensor]:
        """Return the states of all slots of a layer, for its mixer to read and to replace."""
        return self.together[layer]

    def get_apart(self, slot: int) -> "OneSlot":
        """Return the cache of one request alone."""
        return OneSlot(self.apart[slot])

    def update(
        self, keys_RH1K: Tensor, values_RH1K: Tensor, layer: int, *_: Any
    ) -> tuple[Mapping[int, tuple[Tensor, Tensor]], None]:
        """Add a token to each request; return slot -> keys and values of all its tokens."""
        rows = {
            slot: held[layer].update(keys_RH1K[slot : slot + 1], values_RH1K[slot : slot + 1])
            for slot, held in self.apart.items()
        }
        return rows, None

    def count_bytes(self) -> int:
        """Count the bytes held for requests, free slots and unused ends of buffers included."""
        tensors = [tensor for layer in self.together for tensor in layer.values()]
        for held in self.apart.values():
            for memory in held:
                if isinstance(memory, StateLayer):
                    tensors.extend(memory.tensors.values())
                elif isinstance(memory, GrowingLayer):
                    tensors += memory.room
                elif memory is not None:
                    tensors += [memory.keys, memory.values]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class OneSlot:
    """The cache of one request, for mixers that take requests one by one."""

    def __init__(self, held: list[Any]) -> None:
        self._held = held

    def get_state(self, layer: int) -> dict[str, Tensor]:
        """Return the named tensors of a layer, to read and to replace."""
        state: dict[str, Tensor] = self._held[layer].tensors
        return state


def attend_rows(
    module: Any,
    query_RG1K: Tensor,
    rows: Mapping[int, tuple[Tensor, Tensor]],
    *_: Any,
    scaling: float | None = None,
    **__: Any,
) -> tuple[Tensor, None]:
    """Attend from one token of each request to all of its own, in the place of sdpa.

    Query heads that share keys are taken as tokens of one head, so that keys are read once. Free
    slots get zeros.

    Args:
        module: the attention layer; not looked at.
        query_RG1K: queries.
        rows: what `SlotMemory.update` returned.
        scaling: factor of the scores; None is one over the root of K.

    Returns:
        outputs (R, 1, G, K), and no weights.
    """
    output_R1GK = query_RG1K.new_zeros(query_RG1K.transpose(1, 2).shape)
    for slot, (keys_1HTK, values_1HTK) in rows.items():
        heads = (1, keys_1HTK.shape[1], -1, query_RG1K.shape[3])
        mixed_1HSK = functional.scaled_dot_product_attention(
            query_RG1K[slot].reshape(heads), keys_1HTK, values_1HTK, scale=scaling
        )
        output_R1GK[slot, 0] = mixed_1HSK.reshape(-1, query_RG1K.shape[3])
    return output_R1GK, None


def find_num_slots(weights: list[Tensor], wanted: int, *, most: int = 32) -> int | None:
    """Find how many rows a product must have so that no row's result depends on its place.

    Libraries of matrix products take the last rows of a product, or all of a small one, by other
    kernels, whose sums round differently. With a fixed number of rows of which each gives the same
    bits wherever it lies, an answer does not depend on who else is served.

    Args:
        weights: of the products of a model, (outputs, inputs) each.
        wanted: rows there must be at least.
        most: rows there may be beyond those.

    Returns:
        the least number of rows with this property, or None where there is none.
    """
    if wanted == 1:
        return 1
    shapes = {(weight.shape, weight.dtype): weight for weight in weights}
    return next(
        (
            num_rows
            for num_rows in range(wanted, wanted + most + 1)
            if all(_is_alike(weight, num_rows) for weight in shapes.values())
        ),
        None,
    )


def _is_alike(weight_OI: Tensor, num_rows: int) -> bool:
    """Tell whether equal rows give equal results in every place among other rows."""
    generator = torch.Generator().manual_seed(0)
    rows_RI = torch.randn(num_rows, weight_OI.shape[1], generator=generator).to(weight_OI)
    ahead_RO = functional.linear(rows_RI, weight_OI)
    for shift in {1, 2, 3, num_rows // 2, num_rows - 1} - {0}:
        shifted_RO = functional.linear(rows_RI.roll(shift, 0), weight_OI)
        if not torch.equal(shifted_RO.roll(-shift, 0), ahead_RO):
            return False
    return True
