"""What the sizes of each family's models depend on: the side of a family that needs no torch.

The parts of the families, modules of transformers, are in `hybridize/models/families`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Config = Mapping[str, Any]


def slides_nowhere(config: Config, layer: int) -> bool:
    """Answer for a family without sliding windows."""
    return False


def slides_everywhere(config: Config, layer: int) -> bool:
    """Answer for a family whose window, if any, holds in every layer."""
    return True


def slides_late(config: Config, layer: int) -> bool:
    """Answer for layers that `layer_types` names, or else those from `max_window_layers` on."""
    types = config.get("layer_types")
    if types:
        return bool(types[layer] == "sliding_attention")
    return layer >= int(config["max_window_layers"])


def slides_without_rope(config: Config, layer: int) -> bool:
    """Answer for layers that `layer_types` names, or else those without rotary positions."""
    types, with_rope = config.get("layer_types"), config.get("no_rope_layers")
    if types:
        return bool(types[layer] == "sliding_attention")
    if with_rope:
        return not with_rope[layer]
    return (layer + 1) % int(config["no_rope_layer_interval"]) == 0


@dataclass(frozen=True, kw_only=True)
class FamilySizes:
    """What decides how large a model of a family is, beside the keys that all families share.

    A bias is there, or not, or the config.json says so under the key that is given.
    """

    defaults: Config = field(default_factory=dict)
    """Values the family's config class gives to keys that a config.json leaves out."""
    qkv_bias: bool | str = False
    """Of queries, keys and values."""
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: str | None = None
    """Norms of queries and keys: one for each "head", or one over "all heads" of them."""
    slides: Callable[[Config, int], bool] = slides_nowhere
    """Whether a layer has the sliding window, if the model has one."""


_QWEN_WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
FAMILIES = {
    "llama": FamilySizes(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
    "mistral": FamilySizes(
        defaults={"num_key_value_heads": 8, "sliding_window": 4096}, slides=slides_everywhere
    ),
    "qwen2": FamilySizes(
        defaults={"num_key_value_heads": 32, **_QWEN_WINDOWS}, qkv_bias=True, slides=slides_late
    ),
    "qwen3": FamilySizes(
        defaults={"num_key_value_heads": 32, "head_dim": 128, **_QWEN_WINDOWS},
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm="head",
        slides=slides_late,
    ),
    "smollm3": FamilySizes(
        defaults={
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "rope_theta": 2_000_000.0,
            "use_sliding_window": False,
            "no_rope_layer_interval": 4,
        },
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
        slides=slides_without_rope,
    ),
    "granite": FamilySizes(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
    "olmo2": FamilySizes(qkv_bias="attention_bias", o_bias="attention_bias", qk_norm="all heads"),
    "phi3": FamilySizes(slides=slides_everywhere),
}
"""`model_type` in config.json -> what its sizes depend on."""
