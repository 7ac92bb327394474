"""Qwen 2: Llama with biases on q, k and v, and sliding windows in the layers its config names."""

from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2Attention,
    Qwen2MLP,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
)

from hybridize.models.families.base import Family, get_layer_type_window

QWEN2 = Family(
    name="qwen2",
    config=Qwen2Config,
    attention=Qwen2Attention,
    mlp=Qwen2MLP,
    norm=Qwen2RMSNorm,
    rotary=Qwen2RotaryEmbedding,
    get_window=get_layer_type_window,
)
