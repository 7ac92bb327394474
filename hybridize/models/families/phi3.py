"""Phi 3: q, k and v in one projection, gate and up in one; positions turn part of a head."""

from transformers import Phi3Config
from transformers.models.phi3.modeling_phi3 import (
    Phi3Attention,
    Phi3MLP,
    Phi3RMSNorm,
    Phi3RotaryEmbedding,
)

from hybridize.models.families.base import Family, get_model_window

PHI3 = Family(
    name="phi3",
    config=Phi3Config,
    attention=Phi3Attention,
    mlp=Phi3MLP,
    norm=Phi3RMSNorm,
    rotary=Phi3RotaryEmbedding,
    get_window=get_model_window,
    get_rope_switch=lambda config: config.original_max_position_embeddings,
)
