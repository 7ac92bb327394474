"""Llama: the plain form, optional biases."""

from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from hybridize.models.families.base import Family

LLAMA = Family(
    name="llama",
    config=LlamaConfig,
    attention=LlamaAttention,
    mlp=LlamaMLP,
    norm=LlamaRMSNorm,
    rotary=LlamaRotaryEmbedding,
)
