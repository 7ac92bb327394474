"""The keys of a GGUF file: which architecture of llama.cpp computes a model, and its sizes.

llama.cpp's words: an SSM's time_step_rank is its number of heads; a layer with no key heads is a
Mamba layer; rope.scaling.finetuned is what turns rotary positions on in granitehybrid.
"""

from typing import Any

import torch
from torch import Tensor

from hybridize.core.errors import ModelError
from hybridize.core.exports import check_fit
from hybridize.core.gguf import ARCHITECTURES, HYBRID
from hybridize.exports.gguf_tensors import MixerSizes
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.model import Model

_SCALED = (HYBRID, "granite")

Keys = dict[str, Any]


def find_architecture(model: Model) -> str:
    """Return the architecture of llama.cpp that computes exactly what a model does.

    Raises:
        ModelError: there is none; says what would fit.
    """
    reasons = check_fit(model.network.config.to_dict(), "gguf")
    if reasons:
        raise ModelError(f"model {model.name} cannot be written as GGUF: {'; '.join(reasons)}.")
    is_hybrid = "mamba2" in model.network.layout.mixers
    return HYBRID if is_hybrid else ARCHITECTURES[model.network.config.teacher.model_type]


def make_keys(model: Model, architecture: str, padded: MixerSizes | None) -> Keys:
    """Return the sizes and numbers of a model by llama.cpp's names.

    Args:
        model: that fits the architecture; see `find_architecture`.
        architecture: of llama.cpp.
        padded: sizes of the mamba2 layers in the file; None where it has none.
    """
    network = model.network
    config, teacher = network.config, network.config.teacher
    kv_heads = [
        config.num_key_value_heads if kind == "attention" else 0 for kind in network.layout.mixers
    ]
    keys: Keys = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": teacher.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": kv_heads if padded else kv_heads[0],
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(teacher.rms_norm_eps),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(_theta(network)),
        "rope.scaling.type": "none",
        "rope.scaling.attn_factor": float(network.model.rotary_emb.attention_scaling),
    }
    if architecture in _SCALED:
        keys |= _make_scales(network)
    if padded is not None:
        keys |= {
            "ssm.conv_kernel": padded.conv_width,
            "ssm.inner_size": padded.inner_size,
            "ssm.state_size": padded.state_size,
            "ssm.time_step_rank": padded.num_heads,
            "ssm.group_count": padded.num_groups,
        }
    return {
        "general.name": model.name,
        "general.type": "model",
        **{f"{architecture}.{key}": value for key, value in keys.items()},
    }


def _make_scales(network: HybridForCausalLM) -> Keys:
    """Return the factors of the Granite architectures; 1 for a model that scales nothing."""
    config, multipliers = network.config, network.model.multipliers
    scale = getattr(config.teacher, "attention_multiplier", config.head_dim**-0.5)
    return {
        "attention.scale": float(scale),
        "embedding_scale": float(multipliers.embedding),
        "residual_scale": float(multipliers.residual),
        "logit_scale": float(multipliers.logits_divisor),
        "rope.scaling.finetuned": True,
    }


def make_rope_factors(network: HybridForCausalLM) -> Tensor | None:
    """Return what divides each rotary frequency, (P / 2); None where nothing does."""
    width = network.config.head_dim
    exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
    plain = _theta(network) ** -exponents
    used = network.model.rotary_emb.inv_freq.double().cpu()
    factors = (plain / used).float()
    return None if torch.allclose(factors, torch.ones_like(factors), atol=1e-6) else factors


def _theta(network: HybridForCausalLM) -> float:
    rope = getattr(network.config.teacher, "rope_parameters", None) or {}
    return float(rope.get("rope_theta", 10_000.0))
