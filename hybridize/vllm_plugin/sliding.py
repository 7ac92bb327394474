"""Sliding in vLLM: attention over a window and the first tokens, with a cache of constant size.

Legend: T tokens of one request, B requests that decode, D model width, S slots of the cache, N
tokens and slots together, H key-value heads, R query heads per key-value head, K head width.

Keys keep the rotary position they had when they were written, so their order in the cache does not
matter: a token has its own slot, if it is one of the first, or else shares one with the tokens
`window` - 1 before and behind it, of which the window never shows two. What it computes is said in
`hybridize.models.mixers.sliding`.
"""

from typing import Any

import torch
from torch import Tensor

from hybridize.core.errors import ModelError
from hybridize.vllm_plugin.attention import Heads
from hybridize.vllm_plugin.states import StateMixer, States

SHORTEST_CHUNK = 128
"""Tokens that are mixed at once, unless the window is longer: cost is linear in tokens."""


class Sliding(StateMixer):
    """softmax(q k) v over the window and the sinks."""

    def __init__(self, vllm_config: Any, layer: int, prefix: str) -> None:
        config = vllm_config.model_config.hf_config
        options = config.mixer_options.get("sliding", {})
        heads = Heads(config, layer, vllm_config.quant_config, f"{prefix}.attention")
        super().__init__(vllm_config, heads.num_heads * heads.head_dim, prefix)
        self.window, self.sinks = options.get("window", 128), options.get("sinks", 4)
        if self.sinks + self.window < 2:
            raise ModelError("sliding with window 1 and no sinks keeps nothing. Use a longer one.")
        self.shape = (self.sinks + self.window - 1, heads.num_kv_heads, heads.head_dim)
        self.attention = heads

    def forward(self, positions_T: Tensor, hidden_TD: Tensor) -> Tensor:
        """Mix the tokens of each request, (T, D)."""
        inputs_TI = torch.cat(self.attention.project(positions_T, hidden_TD), dim=-1)
        return self.attention.o_proj(self.mix(inputs_TI))[0]

    def step(self, inputs_BI: Tensor, states: States, seen_B: Tensor) -> tuple[Tensor, States]:
        """See `StateMixer.step`."""
        q_BHRK, k_BHK, v_BHK = self._split(inputs_BI)
        (keys_BSHK, values_BSHK), num_slots = states, self.shape[0]
        seen_BS = torch.arange(num_slots + 1, device=seen_B.device) < seen_B[:, None]
        seen_BS[:, -1] = True  # itself, behind the slots
        y_BHRK = self._attend(
            q_BHRK[:, None],
            torch.cat([keys_BSHK, k_BHK[:, None]], dim=1),
            torch.cat([values_BSHK, v_BHK[:, None]], dim=1),
            seen_BS[:, None],
        )
        slots_B = self._slot(seen_B.long())
        own_BS = torch.arange(num_slots, device=seen_B.device) == slots_B[:, None]
        keys_BSHK = torch.where(own_BS[..., None, None], k_BHK[:, None], keys_BSHK)
        values_BSHK = torch.where(own_BS[..., None, None], v_BHK[:, None], values_BSHK)
        return y_BHRK.reshape(len(seen_B), -1), (keys_BSHK, values_BSHK)

    def scan(self, inputs_1TI: Tensor, states: States | None, seen: int) -> tuple[Tensor, States]:
        """See `StateMixer.scan`."""
        if states is None:
            states = tuple(inputs_1TI.new_zeros(1, *self.shape) for _ in range(2))
        made = [
            self._scan_chunk(chunk_1CI, states, seen + start)
            for start, chunk_1CI in self._cut(inputs_1TI)
        ]
        return torch.cat(made, dim=1), states

    def _cut(self, inputs_1TI: Tensor) -> list[tuple[int, Tensor]]:
        size = max(self.window, SHORTEST_CHUNK)
        return list(
            zip(range(0, inputs_1TI.shape[1], size), inputs_1TI.split(size, dim=1), strict=True)
        )

    def _scan_chunk(self, inputs_1TI: Tensor, states: States, seen: int) -> Tensor:
        """Mix one chunk and write its keys and values over those that no later token sees."""
        q_THRK, k_THK, v_THK = self._split(inputs_1TI[0])
        own_T = torch.arange(seen, seen + len(q_THRK), device=q_THRK.device)
        place_N = torch.cat([self._list_held(seen, own_T.device), own_T])
        near_TN = (own_T[:, None] - place_N < self.window) | (place_N < self.sinks)
        seen_TN = (place_N >= 0) & (place_N <= own_T[:, None]) & near_TN
        k_1NHK, v_1NHK = (
            torch.cat([held[0], new])[None]
            for held, new in zip(states, (k_THK, v_THK), strict=True)
        )
        y_1THRK = self._attend(q_THRK[None], k_1NHK, v_1NHK, seen_TN[None])
        kept_T = (own_T > own_T[-1] - (self.window - 1)) | (own_T < self.sinks)
        slots = self._slot(own_T[kept_T])
        states[0][0, slots], states[1][0, slots] = k_THK[kept_T], v_THK[kept_T]
        return y_1THRK.reshape(1, len(own_T), -1)

    def _slot(self, place: Tensor) -> Tensor:
        """Return the slot of each token; with a window of 1 only sinks have one of those held."""
        around = self.sinks + (place - self.sinks) % max(self.window - 1, 1)
        return torch.where(place < self.sinks, place, around)

    def _list_held(self, seen: int, device: torch.device) -> Tensor:
        """Return which token each slot holds once `seen` are written; -1 for none."""
        slots_S = torch.arange(self.shape[0], device=device)
        cycle = max(self.window - 1, 1)
        latest_S = seen - 1 - (seen - 1 - slots_S) % cycle
        held_S = torch.where(slots_S < self.sinks, slots_S, latest_S)
        return torch.where(slots_S < seen, held_S, -1)

    def _split(self, inputs_TI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (T, H, R, K), keys and values (T, H, K) of tokens."""
        heads, num_tokens = self.attention, len(inputs_TI)
        width = heads.num_kv_heads * heads.head_dim
        sizes = [heads.num_heads * heads.head_dim, width, width]
        q_TQ, k_TK, v_TK = inputs_TI.split(sizes, dim=-1)
        k_THK, v_THK = (
            values.reshape(num_tokens, heads.num_kv_heads, heads.head_dim)
            for values in (k_TK, v_TK)
        )
        return q_TQ.reshape(num_tokens, heads.num_kv_heads, -1, heads.head_dim), k_THK, v_THK

    def _attend(self, q_BTHRK: Tensor, k_BNHK: Tensor, v_BNHK: Tensor, seen_BTN: Tensor) -> Tensor:
        scores_BHRTN = torch.einsum("bthrk,bnhk->bhrtn", q_BTHRK.float(), k_BNHK.float())
        scores_BHRTN = scores_BHRTN * self.attention.scale
        shares_BHRTN = scores_BHRTN.masked_fill(~seen_BTN[:, None, None], -torch.inf).softmax(-1)
        return torch.einsum("bhrtn,bnhk->bthrk", shares_BHRTN, v_BNHK.float()).to(q_BTHRK.dtype)

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the keys and of the values held, (S, H, K) each."""
        return self.shape, self.shape

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        """Return the dtype of the keys and of the values."""
        return self.cache_dtype, self.cache_dtype
