"""Granite: Llama with its embedding, residual stream, attention scores and logits scaled."""

from typing import Any

from transformers import GraniteConfig
from transformers.models.granite.modeling_granite import (
    GraniteAttention,
    GraniteMLP,
    GraniteRMSNorm,
    GraniteRotaryEmbedding,
)

from hybridize.models.families.base import Family, Multipliers


def get_multipliers(config: Any) -> Multipliers:
    """Read what the configuration scales; the attention scales its scores itself."""
    return Multipliers(
        embedding=config.embedding_multiplier,
        residual=config.residual_multiplier,
        logits_divisor=config.logits_scaling,
    )


GRANITE = Family(
    name="granite",
    config=GraniteConfig,
    attention=GraniteAttention,
    mlp=GraniteMLP,
    norm=GraniteRMSNorm,
    rotary=GraniteRotaryEmbedding,
    get_multipliers=get_multipliers,
)
