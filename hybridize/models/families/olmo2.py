"""OLMo 2: norms behind mixer and MLP, and RMS norms over all heads of q and of k."""

from transformers import Olmo2Config
from transformers.models.olmo2.modeling_olmo2 import (
    Olmo2Attention,
    Olmo2MLP,
    Olmo2RMSNorm,
    Olmo2RotaryEmbedding,
)

from hybridize.models.families.base import Family, Norms

OLMO2 = Family(
    name="olmo2",
    config=Olmo2Config,
    attention=Olmo2Attention,
    mlp=Olmo2MLP,
    norm=Olmo2RMSNorm,
    rotary=Olmo2RotaryEmbedding,
    norms=Norms(
        before_mixer=None,
        after_mixer="post_attention_layernorm",
        before_mlp=None,
        after_mlp="post_feedforward_layernorm",
    ),
)
