"""Mistral: Llama with a free head width and, in some models, a sliding window in every layer."""

from transformers import MistralConfig
from transformers.models.mistral.modeling_mistral import (
    MistralAttention,
    MistralMLP,
    MistralRMSNorm,
    MistralRotaryEmbedding,
)

from hybridize.models.families.base import Family, get_model_window

MISTRAL = Family(
    name="mistral",
    config=MistralConfig,
    attention=MistralAttention,
    mlp=MistralMLP,
    norm=MistralRMSNorm,
    rotary=MistralRotaryEmbedding,
    get_window=get_model_window,
)
