"""How far a mixer remembers, and how full its state is, from its decay rates and states.

Legend: B batch, T tokens, D model width, H heads, P channels per head, N state size, E inner width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridize.models.mixers import widen

SHORT_TOKENS = 16.0
"""A memory of fewer tokens counts as short."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the decay rates and the state of one mixer say."""

    median_tokens: float
    """Tokens after which a write has decayed to 1/e, at the median of the heads (channels and
    states of mamba1), with the step sizes met on the text."""
    longest_tokens: float
    short_share: float
    """Share of heads with less than `SHORT_TOKENS`."""
    state_rank: float
    """Effective rank of the state at the end, exp of the entropy of its squared singular values,
    as a share of the highest possible: 1 is full."""
    state_growth: float
    """Root mean square of the state at the end over that halfway: above 1 it still fills."""


def find_decay_rates(mixer: Any, kind: str, hidden_BTD: Tensor) -> Tensor | None:
    """Return the mean decay per token of each head, -log alpha > 0; None for a mixer without."""
    find = RATES.get(kind)
    return None if find is None else find(mixer, hidden_BTD)


def _mamba2(mixer: Any, hidden_BTD: Tensor) -> Tensor:
    rows_HD = mixer.in_proj.weight[-mixer.num_heads :]
    step_BTH = F.softplus(widen(F.linear(hidden_BTD, rows_HD)) + widen(mixer.dt_bias))
    return step_BTH.mean((0, 1)) * widen(mixer.A_log).exp()


def _mamba1(mixer: Any, hidden_BTD: Tensor) -> Tensor:
    step_BTE = widen(F.linear(mixer.dt_in_proj(hidden_BTD), mixer.dt_proj.weight))
    times = {"never": 0, "once": 1, "twice": 2}[mixer.dt_bias]
    if times:
        step_BTE = step_BTE + times * widen(mixer.dt_proj.bias)
    return (F.softplus(step_BTE).mean((0, 1))[:, None] * widen(mixer.A_log).exp()).flatten()


def _gated_delta(mixer: Any, hidden_BTD: Tensor) -> Tensor:
    step_BTH = F.softplus(widen(mixer.in_proj_a(hidden_BTD)) + widen(mixer.dt_bias))
    return step_BTH.mean((0, 1)) * widen(mixer.A_log).exp()


RATES: Mapping[str, Callable[[Any, Tensor], Tensor]] = {
    "mamba2": _mamba2,
    "mamba1": _mamba1,
    "gated_delta": _gated_delta,
}
"""Kind of mixer -> what finds its decay rates."""
STATES = ("ssd", "scan", "delta")
"""Names in the cache of the states that are matrices."""


def describe_memory(
    rates: Tensor, half: Mapping[str, Tensor], end: Mapping[str, Tensor]
) -> Memory | None:
    """Sum up decay rates and a layer's cache halfway and at the end; None without a state."""
    name = next((name for name in STATES if name in end), None)
    if name is None:
        return None
    tokens = 1 / rates.double().clamp_min(1e-9)
    states = [_as_matrices(part[name]) for part in (half, end)]
    sizes = [state.square().mean().sqrt().item() for state in states]
    return Memory(
        median_tokens=tokens.median().item(),
        longest_tokens=tokens.max().item(),
        short_share=(tokens < SHORT_TOKENS).double().mean().item(),
        state_rank=_rank_share(states[1]),
        state_growth=sizes[1] / sizes[0] if sizes[0] > 0 else 0.0,
    )


def _as_matrices(state: Tensor) -> Tensor:
    """Return states as matrices (..., P, N); channels of mamba1 are cut into squares of N."""
    if state.ndim == 3:
        size = state.shape[-1]
        state = state[:, : state.shape[1] // size * size].unflatten(1, (-1, size))
    return state.double()


def _rank_share(matrices: Tensor) -> float:
    energies = torch.linalg.svdvals(matrices).square()
    total = energies.sum(-1, keepdim=True)
    shares = energies / total.clamp_min(1e-300)
    entropy = -(shares * shares.clamp_min(1e-300).log()).sum(-1)
    ranks = torch.where(total[..., 0] > 0, entropy.exp(), torch.zeros_like(entropy))
    return (ranks.mean() / min(matrices.shape[-2:])).item()
