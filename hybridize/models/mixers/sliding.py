"""Sliding: the teacher's attention, with a window and with sinks that stay in sight.

Legend: B batch, T tokens, C tokens of one chunk, S slots of the cache, D model width, H key-value
heads, K head width.

What a token sees is settled inside its own document, counting real tokens only: itself, the
`window` - 1 tokens before it, and the first `sinks` tokens of the document (Xiao et al. 2023,
"Efficient streaming language models with attention sinks", arXiv 2309.17453). Keys keep the rotary
position they had when they were written, so that a sink is as far away as it is; in a document of
up to `window` tokens this is the teacher's attention, number for number.
"""

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from hybridize.core.errors import ModelError
from hybridize.models.documents import attend_documents
from hybridize.models.mixers.base import Mixer, MixerContext, MixerShape

SHORTEST_CHUNK = 128
"""Tokens that are mixed at once, unless the window is longer: cost is linear in tokens."""


class Sliding(Mixer):
    """softmax(q k) v over the window and the sinks, by the attention module of the family.

    Args:
        window: tokens a token sees, itself included; the teacher's own window, if any, does not
            count.
        sinks: first tokens of the document that stay visible; 0 is a plain window.
    """

    def __init__(self, shape: MixerShape, layer: int, *, window: int = 128, sinks: int = 4) -> None:
        super().__init__(shape, layer)
        if window < 1 or sinks < 0:
            raise ModelError(
                f"mixer sliding: window {window} or sinks {sinks} does not exist; use a window of "
                "at least 1 token, and 0 or more sinks."
            )
        if shape.make_attention is None:
            raise ModelError("mixer sliding: the shape does not say how to make the attention.")
        self.window, self.sinks = window, sinks
        self.attention = shape.make_attention()
        # Its masks are those of sdpa, whichever implementation the other layers take.
        config: Any = copy(self.attention.config)
        config._attn_implementation = "sdpa"
        self.attention.config = config

    def forward(self, hidden_BTD: Tensor, ctx: MixerContext) -> Tensor:
        """Mix the tokens of each document; see `Mixer.forward`."""
        if ctx.documents is not None:
            return attend_documents(self._attend, hidden_BTD, ctx.documents)
        state = {} if ctx.cache is None else ctx.cache.get_state(self.layer)
        real_BT = None if ctx.segments_BT is None else ctx.segments_BT != 0
        return self._attend(hidden_BTD, ctx.rope, real_BT, state)

    def _attend(
        self,
        hidden_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        real_BT: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Mix one document a row, chunk by chunk; `state` is read and left for later tokens."""
        num_tokens = hidden_BTD.shape[1]
        rolling = _RollingKeys(self.window, self.sinks, {} if state is None else state)
        mixed: list[Tensor] = []
        for start in range(0, num_tokens, max(self.window, SHORTEST_CHUNK)):
            chunk = slice(start, min(start + max(self.window, SHORTEST_CHUNK), num_tokens))
            hidden_BCD = hidden_BTD[:, chunk]
            mask_BCS = rolling.look(hidden_BCD, None if real_BT is None else real_BT[:, chunk])
            output_BCD, _ = self.attention(
                hidden_states=hidden_BCD,
                position_embeddings=(rope[0][:, chunk], rope[1][:, chunk]),
                attention_mask=None if mask_BCS is None else mask_BCS[:, None],
                past_key_values=rolling,
            )
            mixed.append(output_BCD)
            rolling.forget()
        if state is not None:
            state.update(rolling.get_state())
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw all parameters as if no teacher were given: uniform, biases 0, norms 1."""
        with torch.no_grad():
            for module in self.attention.modules():
                if isinstance(module, nn.Linear):
                    bound = module.in_features**-0.5
                    module.weight.uniform_(-bound, bound, generator=generator)
                    if module.bias is not None:
                        module.bias.zero_()
                elif next(module.parameters(recurse=False), None) is not None:
                    for parameter in module.parameters(recurse=False):
                        parameter.fill_(1)


class _RollingKeys:
    """Keys and values that may still be seen, in the place of a cache of the family's attention.

    The slots of a row hold, in the order of the document, its sinks and then its latest tokens; a
    row that has fewer tokens than there are slots leaves the last slots unused. `count_B` says how
    many real tokens a row has had, and with it which token each slot holds.
    """

    def __init__(self, window: int, sinks: int, state: dict[str, Tensor]) -> None:
        self.sinks, self.num_latest = sinks, window - 1
        self.keys, self.values = state.get("keys"), state.get("values")
        self.count_B = state.get("count")
        self.place_BS: Tensor | None = None

    def look(self, hidden_BCD: Tensor, real_BC: Tensor | None) -> Tensor | None:
        """Return who sees whom, (B, C, S + C); None is plainly causal."""
        num_rows, num_tokens = hidden_BCD.shape[:2]
        if self.count_B is None:
            self.count_B = torch.zeros(num_rows, dtype=torch.long, device=hidden_BCD.device)
        num_slots = 0 if self.keys is None else self.keys.shape[2]
        self.place_BS = None
        if num_tokens == 1 and real_BC is None and bool((self.count_B >= num_slots).all()):
            self.count_B = self.count_B + 1
            return None  # every slot is held for the very next token
        is_plain = num_slots == 0 and real_BC is None and num_tokens <= self.num_latest + 1
        if real_BC is None:
            real_BC = hidden_BCD.new_ones(num_rows, num_tokens, dtype=torch.bool)
        slot_S = torch.arange(num_slots, device=hidden_BCD.device)
        passed_B1 = (self.count_B[:, None] - num_slots).clamp(min=0)
        held_BS = torch.where(slot_S < self.sinks, slot_S, slot_S + passed_B1)
        held_BS = torch.where(held_BS < self.count_B[:, None], held_BS, -1)
        own_BC = self.count_B[:, None] + real_BC.long().cumsum(dim=1) - 1
        own_BC = torch.where(real_BC, own_BC, -1)
        self.place_BS = torch.cat([held_BS, own_BC], dim=1)
        self.count_B = self.count_B + real_BC.sum(dim=1)
        if is_plain:
            return None
        key_B1S, query_BC1 = self.place_BS[:, None], own_BC[..., None]
        near_BCS = (query_BC1 - key_B1S <= self.num_latest) | (key_B1S < self.sinks)
        seen_BCS = (key_B1S >= 0) & (key_B1S <= query_BC1) & near_BCS
        # Padding sees itself, so that its scores are finite.
        itself_CS = slot_S.new_ones(num_tokens, num_slots + num_tokens, dtype=torch.bool)
        return seen_BCS | (itself_CS.tril(num_slots) & itself_CS.triu(num_slots))

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Put the keys and values of a chunk, (B, H, C, K), behind those held; return all."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values

    def forget(self) -> None:
        """Drop what no later token sees."""
        assert self.keys is not None and self.values is not None and self.count_B is not None
        num_slots = min(self.keys.shape[2], self.sinks + self.num_latest)
        if self.place_BS is None:
            if self.keys.shape[2] > num_slots:
                self.keys, self.values = (
                    self._drop_oldest(self.keys),
                    self._drop_oldest(self.values),
                )
            return
        first_B1 = self.count_B[:, None] - self.num_latest
        kept_BS = (self.place_BS >= first_B1) | (self.place_BS < self.sinks)
        gone_BS = (self.place_BS < 0) | ~kept_BS
        order_BS = gone_BS.long().argsort(dim=1, stable=True)[:, :num_slots]
        index = order_BS[:, None, :, None].expand(-1, *self.keys.shape[1:2], -1, self.keys.shape[3])
        self.keys, self.values = self.keys.gather(2, index), self.values.gather(2, index)

    def get_state(self) -> dict[str, Tensor]:
        """Return what a later call goes on from."""
        assert self.keys is not None and self.values is not None and self.count_B is not None
        return {"keys": self.keys, "values": self.values, "count": self.count_B}

    def _drop_oldest(self, values_BHSK: Tensor) -> Tensor:
        """Drop the token behind the sinks."""
        return torch.cat([values_BHSK[:, :, : self.sinks], values_BHSK[:, :, self.sinks + 1 :]], 2)
