"""Students with sliding windows in GraniteSWAForCausalLM, whose sinks are put out of reach.

The class is a Llama with scaled scores, a window in the layers its config names, and one learned
number for each head, a sink: the score of a token that is not there. At -10,000 its weight in the
softmax is exactly 0.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from hybridize.core.exports import read_rope
from hybridize.core.padding import Heads
from hybridize.core.shape import ModelShape
from hybridize.exports.folder import write_padded
from hybridize.exports.granite import COPIED, list_scales
from hybridize.exports.padding import pad_attention
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.mixers.sliding import Sliding
from hybridize.models.model import Model

SINK = -10_000.0
"""Score of the token that is not there."""


def write(model: Model, folder: Path, dtype: str | None) -> None:
    """Write weights and config.json of a student that `check_fit` found to fit."""
    write_padded(model, folder, dtype, rename=_rename, make_config=_make_config)


def _rename(
    tensors: dict[str, Tensor], network: HybridForCausalLM, shape: ModelShape, heads: Heads
) -> dict[str, Tensor]:
    """Return the tensors by the names of the class, with its sinks."""
    renamed = {
        name.replace(".mixer.attention.", ".self_attn.", 1): tensor
        for name, tensor in tensors.items()
    }
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}.self_attn"
        output = renamed[f"{prefix}.o_proj.weight"]
        if shape.qkv_bias and not shape.o_bias:
            renamed[f"{prefix}.o_proj.bias"] = output.new_zeros(output.shape[0])
        pad_attention(renamed, prefix, heads, num_kv_heads=shape.num_kv_heads)
        renamed[f"{prefix}.sinks"] = output.new_full((heads.num_heads,), SINK)
    return renamed


def _make_config(network: HybridForCausalLM, shape: ModelShape, heads: Heads) -> dict[str, Any]:
    teacher, mixers = network.config.teacher, network.layout.mixers
    rope = read_rope(teacher.to_dict())
    window = next(module.window for module in network.modules() if isinstance(module, Sliding))
    slides = [
        kind == "sliding" or layer in shape.window_layers for layer, kind in enumerate(mixers)
    ]
    return {name: getattr(teacher, name, None) for name in COPIED} | {
        "model_type": "granite_swa",
        "architectures": ["GraniteSWAForCausalLM"],
        "layer_types": ["sliding_attention" if one else "full_attention" for one in slides],
        "sliding_window": window,
        "num_attention_heads": heads.num_heads,
        "num_key_value_heads": heads.num_kv_heads,
        "head_dim": shape.head_dim,
        "attention_bias": shape.qkv_bias,
        "mlp_bias": shape.mlp_bias,
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "layer_rope_theta": [rope["rope_theta"]] * shape.num_layers,
        "use_cache": True,
        **list_scales(network, shape),
    }
