"""SmolLM 3: Llama with rotary positions only in the layers its config names."""

from transformers import SmolLM3Config
from transformers.models.smollm3.modeling_smollm3 import (
    SmolLM3Attention,
    SmolLM3MLP,
    SmolLM3RMSNorm,
    SmolLM3RotaryEmbedding,
)

from hybridize.models.families.base import Family, get_layer_type_window

SMOLLM3 = Family(
    name="smollm3",
    config=SmolLM3Config,
    attention=SmolLM3Attention,
    mlp=SmolLM3MLP,
    norm=SmolLM3RMSNorm,
    rotary=SmolLM3RotaryEmbedding,
    get_window=get_layer_type_window,
)
