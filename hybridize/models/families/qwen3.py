"""Qwen 3: RMS norms on the heads of q and k, and sliding windows in the layers its config names."""

from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3Attention,
    Qwen3MLP,
    Qwen3RMSNorm,
    Qwen3RotaryEmbedding,
)

from hybridize.models.families.base import Family, get_layer_type_window

QWEN3 = Family(
    name="qwen3",
    config=Qwen3Config,
    attention=Qwen3Attention,
    mlp=Qwen3MLP,
    norm=Qwen3RMSNorm,
    rotary=Qwen3RotaryEmbedding,
    get_window=get_layer_type_window,
)
