"""Family: which modules of transformers a teacher is made of."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig


def get_no_window(config: PreTrainedConfig, layer: int) -> int | None:
    """Answer for a family without sliding windows."""
    return None


def get_layer_type_window(config: PreTrainedConfig, layer: int) -> int | None:
    """Answer for a family whose `layer_types` names the layers with a sliding window."""
    return config.sliding_window if config.layer_types[layer] == "sliding_attention" else None


@dataclass(frozen=True, kw_only=True)
class Family:
    """The parts of one family; all have pre-norm layers, rotary positions and a gated MLP."""

    name: str
    """The `model_type` in config.json."""
    config: type[PreTrainedConfig]
    """Configuration class."""
    attention: type[nn.Module]
    """Called with (config, layer); holds q_proj, k_proj, v_proj and o_proj."""
    mlp: type[nn.Module]
    """Called with (config)."""
    norm: type[nn.Module]
    """Called with (width, eps)."""
    rotary: type[nn.Module]
    """Called with (config); gives cosines and sines for positions."""
    norms_queries_and_keys: bool = False
    """Whether attention holds q_norm and k_norm, which no converted mixer can keep."""
    get_window: Callable[[PreTrainedConfig, int], int | None] = get_no_window
    """Sliding window of a layer, in tokens; None where attention sees everything."""
