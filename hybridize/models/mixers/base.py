"""What every mixer is and gets: Mixer, MixerShape (geometry) and MixerContext (one forward pass).

Legend: B batch, T tokens, D model width, K head width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybridize.models.cache import HybridCache
from hybridize.models.documents import Documents


@dataclass(frozen=True, kw_only=True)
class MixerShape:
    """The geometry of the attention a mixer replaces."""

    hidden_size: int
    """Model width, D."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads; divides the query heads."""
    head_dim: int
    """Channels per head."""
    norm_eps: float
    """Added to mean squares in norms."""
    make_attention: Callable[[], nn.Module] | None = None
    """Makes the family's attention of this layer, for a mixer that keeps it in another form."""


@dataclass(frozen=True, kw_only=True)
class MixerContext:
    """What the layers of one forward pass share."""

    positions_BT: Tensor
    """Position of each token in its document, for rotary embeddings."""
    rope: tuple[Tensor, Tensor]
    """Cosines and sines of the positions, (B, T, K) each."""
    masks: Mapping[int | None, Tensor | None]
    """Window in tokens (None: all) -> attention mask; a mask of None is plainly causal."""
    segments_BT: Tensor | None = None
    """Document of each token, 0 for padding; None is one document per row without padding."""
    documents: Documents | None = None
    """Packed rows: where each document is, for mixers that take documents for rows."""
    cache: HybridCache | None = None
    """State and keys of earlier tokens, and where to leave them for later ones."""
    fused: bool = False
    """Whether norms and MLPs run in the way of `hybridize.models.fused`."""


class Mixer(nn.Module):
    """A sub-layer that mixes tokens, in the place of attention.

    Subclasses take `(shape, layer, **options)` and implement `forward` and `reset`. Nothing may
    flow between documents, and padding may not change other tokens.
    """

    FLOAT32: tuple[str, ...] = ()
    """Parameters that stay float32 in a bfloat16 model: rounding them changes the decay."""

    def __init__(self, shape: MixerShape, layer: int) -> None:
        super().__init__()
        self.shape, self.layer = shape, layer

    def forward(self, hidden_BTD: Tensor, ctx: MixerContext) -> Tensor:
        """Mix the tokens of each document; return what the residual stream gains, (B, T, D)."""
        raise NotImplementedError

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw all parameters as if no teacher were given."""
        raise NotImplementedError


def widen(tensor: Tensor) -> Tensor:
    """Return values in float32, or in float64 if they have that: for decays, steps and norms."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def is_decoding(hidden_BTD: Tensor, ctx: MixerContext) -> bool:
    """Tell whether one token goes on from a cache on a CPU, with no gradient to come.

    There, calls cost more than what they compute, so that a mixer takes as few as it can.
    """
    return (
        hidden_BTD.shape[1] == 1
        and ctx.cache is not None
        and hidden_BTD.device.type == "cpu"
        and not torch.is_grad_enabled()
    )


class Identity(Mixer):
    """A mixer that adds nothing to the residual stream, so that the layer keeps only its MLP."""

    def forward(self, hidden_BTD: Tensor, ctx: MixerContext) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(hidden_BTD)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Do nothing: there are no parameters."""
