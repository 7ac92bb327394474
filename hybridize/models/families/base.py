"""Family: which modules of transformers a teacher is made of, and how its layers join them."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig


def get_no_window(config: PreTrainedConfig, layer: int) -> int | None:
    """Answer for a family without sliding windows."""
    return None


def get_model_window(config: PreTrainedConfig, layer: int) -> int | None:
    """Answer for a family whose sliding window, if any, holds in every layer."""
    return config.sliding_window


def get_layer_type_window(config: PreTrainedConfig, layer: int) -> int | None:
    """Answer for a family whose `layer_types` names the layers with a sliding window."""
    return config.sliding_window if config.layer_types[layer] == "sliding_attention" else None


@dataclass(frozen=True, kw_only=True)
class Norms:
    """Names of a layer's norms; None where there is none. The default is the pre-norm layer."""

    before_mixer: str | None = "input_layernorm"
    """Norm of the residual stream that the mixer reads."""
    after_mixer: str | None = None
    """Norm of what the mixer adds to the residual stream."""
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None


@dataclass(frozen=True, kw_only=True)
class Multipliers:
    """Numbers that scale parts of a model; 1 is no scaling."""

    embedding: float = 1.0
    """Factor of the embedded tokens."""
    residual: float = 1.0
    """Factor of what mixers and MLPs add to the residual stream."""
    logits_divisor: float = 1.0
    """Divides the logits."""


def get_no_switch(config: PreTrainedConfig) -> int | None:
    """Answer for a family whose earlier positions stay as they were."""
    return None


def get_no_multipliers(config: PreTrainedConfig) -> Multipliers:
    """Answer for a family that scales nothing."""
    return Multipliers()


@dataclass(frozen=True, kw_only=True)
class Family:
    """The parts of one family; all have RMS norms, rotary positions and a gated MLP."""

    name: str
    """The `model_type` in config.json."""
    config: type[PreTrainedConfig]
    """Configuration class."""
    attention: type[nn.Module]
    """Called with (config, layer); holds q_proj, k_proj and v_proj, or the three below each other
    in qkv_proj, and o_proj; norms of queries and keys, if any, are q_norm and k_norm."""
    mlp: type[nn.Module]
    """Called with (config)."""
    norm: type[nn.Module]
    """Called with (width, eps)."""
    rotary: type[nn.Module]
    """Called with (config); gives cosines and sines for positions."""
    norms: Norms = Norms()
    """Which norms a layer has, and where."""
    get_window: Callable[[PreTrainedConfig, int], int | None] = get_no_window
    """Sliding window of a layer, in tokens; None where attention sees everything."""
    get_rope_switch: Callable[[PreTrainedConfig], int | None] = get_no_switch
    """Tokens beyond which all positions turn differently, so that a cache is filled afresh."""
    get_multipliers: Callable[[PreTrainedConfig], Multipliers] = get_no_multipliers
    """What the configuration scales."""
