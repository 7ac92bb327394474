"""Mamba-2 students of Llama-like teachers in GraniteMoeHybridForCausalLM, without experts.

The class is a Llama whose attention scores are scaled by a number of the config, whose MLP holds
gate and up in one matrix, and whose Mamba layers are those of `hybridize.models.mixers.mamba2`.
The config is written in the spelling that programs of every age read: `attention` and `mamba` in
`layer_types`, the base of the rotary positions beside `rope_parameters`.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridize.core.exports import read_rope
from hybridize.core.padding import Heads
from hybridize.core.shape import ModelShape
from hybridize.exports.folder import write_padded
from hybridize.exports.padding import pad_attention, pad_mamba2
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.mixers.mamba2 import Mamba2
from hybridize.models.model import Model

COPIED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act"),
    *("max_position_embeddings", "initializer_range", "rms_norm_eps", "attention_dropout"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"),
)
"""Keys of the teacher's config that the Granite classes have too."""
_CHUNK_TOKENS = 256
"""Tokens that engines scan at once: speed, not values."""


def write(model: Model, folder: Path, dtype: str | None) -> None:
    """Write weights and config.json of a student that `check_fit` found to fit."""
    write_padded(model, folder, dtype, rename=_rename, make_config=_make_config)


def _rename(
    tensors: dict[str, Tensor], network: HybridForCausalLM, shape: ModelShape, heads: Heads
) -> dict[str, Tensor]:
    """Return the tensors by the names of the class, with zero heads where it wants them."""
    for layer, kind in enumerate(network.layout.mixers):
        prefix = f"model.layers.{layer}"
        gate, up, down = (f"{prefix}.mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
        tensors[f"{prefix}.shared_mlp.input_linear.weight"] = torch.cat(
            [tensors.pop(gate), tensors.pop(up)]
        )
        tensors[f"{prefix}.shared_mlp.output_linear.weight"] = tensors.pop(down)
        if kind == "attention":
            output = tensors[f"{prefix}.self_attn.o_proj.weight"]
            if shape.qkv_bias and not shape.o_bias:
                tensors[f"{prefix}.self_attn.o_proj.bias"] = output.new_zeros(output.shape[0])
            pad_attention(tensors, f"{prefix}.self_attn", heads, num_kv_heads=shape.num_kv_heads)
            continue
        mixer = network.model.layers[layer].mixer
        for name in [name for name in tensors if name.startswith(f"{prefix}.mixer.")]:
            tensors[name.replace(".mixer.", ".mamba.", 1)] = tensors.pop(name)
        pad_mamba2(
            tensors,
            f"{prefix}.mamba",
            num_groups=mixer.num_groups,
            wanted_groups=heads.num_heads,
            state_size=mixer.state_size,
        )
    return tensors


def _make_config(network: HybridForCausalLM, shape: ModelShape, heads: Heads) -> dict[str, Any]:
    teacher = network.config.teacher
    values = {name: getattr(teacher, name, None) for name in COPIED}
    rope = read_rope(teacher.to_dict())
    return values | {
        "model_type": "granitemoehybrid",
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "layer_types": ["mamba" if k == "mamba2" else k for k in network.layout.mixers],
        "num_attention_heads": heads.num_heads,
        "num_key_value_heads": heads.num_kv_heads,
        "head_dim": shape.head_dim,
        "attention_bias": shape.qkv_bias,
        "shared_intermediate_size": shape.ffn_size,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "position_embedding_type": "rope",
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "use_cache": True,
        **list_scales(network, shape),
        **_describe_mamba(network, heads),
    }


def list_scales(network: HybridForCausalLM, shape: ModelShape) -> dict[str, float]:
    """List the numbers by which the Granite classes scale, which are 1 in most teachers."""
    teacher = network.config.teacher
    return {
        "attention_multiplier": getattr(teacher, "attention_multiplier", shape.head_dim**-0.5),
        "embedding_multiplier": getattr(teacher, "embedding_multiplier", 1.0),
        "residual_multiplier": getattr(teacher, "residual_multiplier", 1.0),
        "logits_scaling": getattr(teacher, "logits_scaling", 1.0),
    }


def _describe_mamba(network: HybridForCausalLM, heads: Heads) -> dict[str, Any]:
    mixer = next(module for module in network.modules() if isinstance(module, Mamba2))
    expand = mixer.num_heads // mixer.num_groups
    return {
        "mamba_expand": expand,
        "mamba_n_heads": expand * heads.num_heads,
        "mamba_n_groups": heads.num_heads,
        "mamba_d_head": mixer.head_dim,
        "mamba_d_state": mixer.state_size,
        "mamba_d_conv": mixer.conv1d.kernel_size[0],
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
        "mamba_chunk_size": _CHUNK_TOKENS,
    }
