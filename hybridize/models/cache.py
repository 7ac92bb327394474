"""HybridCache: what each layer remembers of earlier tokens, keys and values or a fixed state.

Legend: B batch, T tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from hybridize.core.errors import ModelError


class StateLayer:
    """The memory of a converted layer: named tensors of bounded size, batch first."""

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Forget everything."""
        self.tensors.clear()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows of the chosen beams."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        self.tensors = {
            name: tensor.index_select(0, indices.to(tensor.device))
            for name, tensor in self.tensors.items()
        }

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self.tensors = {
            name: tensor.repeat_interleave(repeats, dim=0) for name, tensor in self.tensors.items()
        }

    def get_max_length(self) -> int:
        """Return -1: a state has no length."""
        return -1


class GrowingLayer(DynamicLayer):
    """Keys and values (B, H, T, D) that are written behind those held, in room kept for them.

    transformers copies all that is held for each token. Here that happens only when the room is
    full, each time for a quarter more, so that a token costs no more than to be read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.room: tuple[Tensor, ...] = ()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take in new keys and values (B, H, new, D); return all, which share the layer's memory.

        With gradients, and where a row is added or dropped, all are copied.
        """
        if key_states.requires_grad or value_states.requires_grad:
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        total = held + key_states.shape[2]
        if not self._has_room(total):
            self._move((key_states, value_states), held, total + max(64, total // 4))
        self.keys, self.values = (room[:, :, :total] for room in self.room)
        self.keys[:, :, held:], self.values[:, :, held:] = key_states, value_states
        return self.keys, self.values

    def reserve(self, num_tokens: int) -> None:
        """Make room for so many tokens, those held included, and no more."""
        assert self.keys is not None and self.values is not None, "the prompt is filled first"
        held = self.get_seq_length()
        self._move((self.keys, self.values), held, num_tokens)
        self.keys, self.values = (room[:, :, :held] for room in self.room)

    def reset(self) -> None:
        """Forget everything, and give the room back."""
        super().reset()
        self.room = ()

    def _move(self, like: tuple[Tensor, Tensor], held: int, num_tokens: int) -> None:
        room = tuple(one.new_empty(*one.shape[:2], num_tokens, one.shape[3]) for one in like)
        if held and self.keys is not None and self.values is not None:
            room[0][:, :, :held] = self.keys
            room[1][:, :, :held] = self.values
        self.room = room

    def _has_room(self, total: int) -> bool:
        """Tell whether what is held lies in the room, rather than in a copy that was since made."""
        if not self.room or total > self.room[0].shape[2]:
            return False
        return all(
            held is not None
            and held.dim() == 4
            and held.shape[0] == room.shape[0]
            and held.data_ptr() == room.data_ptr()
            for held, room in zip((self.keys, self.values), self.room, strict=True)
        )


class HybridCache(Cache):
    """A transformers cache for any layout, also one without attention.

    Args:
        mixers: kind of each layer, "attention" or another.
        windows: sliding window of each layer in tokens, None where attention sees everything.
    """

    def __init__(self, mixers: Sequence[str], windows: Sequence[int | None]) -> None:
        layers: list[Any] = []
        for kind, window in zip(mixers, windows, strict=True):
            if kind != "attention":
                layers.append(StateLayer())
            elif window is None:
                layers.append(GrowingLayer())
            else:
                layers.append(DynamicSlidingWindowLayer(sliding_window=window))
        super().__init__(layers=layers)
        self.windows = tuple(windows)
        self.num_tokens = 0
        self.ends: list[int] = []
        self.num_generated = 0

    def get_state(self, layer: int) -> dict[str, Tensor]:
        """Return the named tensors of a converted layer, to read and to replace."""
        memory: Any = self.layers[layer]
        return memory.tensors

    def follow(self, generation_config: Any) -> None:
        """Note which tokens end a row in a call of `generate`, for `mask_ended`."""
        ends = generation_config.eos_token_id
        self.ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        self.num_generated = 0

    def mask_ended(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the mask of one step of `generate`, with 0 at what is fed to rows that have ended.

        Args:
            input_ids: the prompt and what was generated behind it, (B, T).
            attention_mask: (B, tokens seen so far and this one).
        """
        self.num_generated += 1
        earlier = input_ids[:, -self.num_generated : -1]
        if not (self.ends and any(self.is_linear) and earlier.numel()):
            return attention_mask
        ended_B1 = torch.isin(earlier, earlier.new_tensor(self.ends)).any(dim=1, keepdim=True)
        return torch.cat([attention_mask[:, :-1], attention_mask[:, -1:] * ~ended_B1], dim=1)

    def advance(self, num_tokens: int) -> None:
        """Count tokens that all layers have seen."""
        self.num_tokens += num_tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens seen, padding included, for any layer."""
        return self.num_tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return how many keys attention of a layer gets, and the index of the first."""
        window = self.windows[layer_idx]
        first = 0 if window is None else max(self.num_tokens - window + 1, 0)
        return self.num_tokens + query_length - first, first

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.num_tokens = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, which only a cache of attention layers can.

        Raises:
            ModelError: a layer holds a state, which cannot be run backwards.
        """
        if not self.is_croppable:
            raise ModelError(
                "a cache with state layers cannot be cropped: run the shorter prompt again."
            )
        super().crop(tokens_to_remove)
        self.num_tokens -= abs(tokens_to_remove)

    @property
    def is_linear(self) -> list[bool]:
        """Tell for each layer whether it holds a state in the place of keys and values."""
        return [isinstance(layer, StateLayer) for layer in self.layers]

    @property
    def is_compileable(self) -> bool:
        """Return False: keys and values grow."""
        return False


def cache_bytes(cache: Cache) -> int:
    """Count the bytes a cache holds at this moment, exactly, over all rows."""
    tensors: list[Tensor] = []
    for layer in cache.layers:
        if isinstance(layer, StateLayer):
            tensors.extend(layer.tensors.values())
        else:
            held = (getattr(layer, name, None) for name in ("keys", "values"))
            tensors.extend(tensor for tensor in held if isinstance(tensor, torch.Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
