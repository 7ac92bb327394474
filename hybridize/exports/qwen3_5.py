"""Gated DeltaNet students of Qwen3 teachers in Qwen3_5ForCausalLM.

Legend: D model width, H query heads, P width of a head.

The class differs from Qwen3 in three ways that weights can undo: its norms multiply by 1 + w, so
each w is written less 1; its attention is gated by a sigmoid of its own rows in q_proj, which are
written as zeros, a gate of one half; and o_proj is written twice as large for that. Its linear
layers are those of `hybridize.models.mixers.gated_delta`, name for name.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridize.core.exports import read_rope
from hybridize.core.shape import ModelShape
from hybridize.exports.folder import cast_tensors, find_dtype, write_model
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.mixers.gated_delta import GatedDelta
from hybridize.models.model import Model

_COPIED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act"),
    *("max_position_embeddings", "initializer_range", "rms_norm_eps", "attention_dropout"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "attention_bias"),
    *("num_attention_heads", "num_key_value_heads"),
)
_SHIFTED = ("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "model.norm")
"""Norms that multiply by 1 + w in the class; the one of a linear layer does not."""


def write(model: Model, folder: Path, dtype: str | None) -> None:
    """Write weights and config.json of a student that `check_fit` found to fit."""
    network = model.network
    shape = ModelShape.from_config(network.config.to_dict())
    tensors = _rename(cast_tensors(network, dtype), shape)
    write_model(tensors, _make_config(network, shape), folder, dtype=find_dtype(network, dtype))


def _rename(tensors: dict[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """Return the tensors by the names of the class, with gates and norms that change nothing.

    Norms are float32 in a file of any type, where 1 less is no rounding.
    """
    renamed = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if module.endswith(_SHIFTED):
            tensor = tensor.float() - 1
        elif module.endswith("self_attn.q_proj"):
            rows_HP = tensor.unflatten(0, (shape.num_heads, shape.head_dim))
            tensor = torch.cat([rows_HP, torch.zeros_like(rows_HP)], dim=1).flatten(0, 1)
        elif module.endswith("self_attn.o_proj") and part == "weight":
            tensor = tensor * 2
        renamed[name.replace(".mixer.", ".linear_attn.", 1)] = tensor
    return renamed


def _make_config(network: HybridForCausalLM, shape: ModelShape) -> dict[str, Any]:
    teacher = network.config.teacher
    mixer = next(module for module in network.modules() if isinstance(module, GatedDelta))
    kinds = {"attention": "full_attention", "gated_delta": "linear_attention"}
    rope = read_rope(teacher.to_dict()) | {"partial_rotary_factor": 1.0}
    pairs = shape.head_dim // 2
    # All three positions of a token are alike in text; the shares only have to add up.
    sections = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
    return {name: getattr(teacher, name, None) for name in _COPIED} | {
        "model_type": "qwen3_5_text",
        "architectures": ["Qwen3_5ForCausalLM"],
        "layer_types": [kinds[kind] for kind in network.layout.mixers],
        "head_dim": shape.head_dim,
        "rope_parameters": rope | {"mrope_section": sections, "mrope_interleaved": True},
        "partial_rotary_factor": 1.0,
        "linear_conv_kernel_dim": mixer.conv1d.kernel_size[0],
        "linear_key_head_dim": mixer.head_dim,
        "linear_value_head_dim": mixer.head_dim,
        "linear_num_key_heads": mixer.num_groups,
        "linear_num_value_heads": mixer.num_heads,
        "use_cache": True,
    }
