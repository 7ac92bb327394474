"""Write a student in the layout of the published Apriel-H1 checkpoints, exactly or not at all.

A model that was read from such a checkpoint is written as it was: the same names, shapes, types and
values. A student of ours gets the names and keys of the training exports (arXiv 2511.02651).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridize.core.apriel_h1 import CODES
from hybridize.core.artifacts import write_json
from hybridize.core.auto_names import APRIEL_H1
from hybridize.core.errors import ModelError
from hybridize.exports.folder import cast_tensors
from hybridize.models.apriel_h1 import FORMAT
from hybridize.models.folders import write_tensors
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.loading import DTYPES
from hybridize.models.mixers.mamba1 import Mamba1
from hybridize.models.model import Model

FITS = (
    "What fits: a student of a Mistral, or of a Llama without biases, whose converted layers are "
    "mamba1 with the options repeat: state and dt_bias: twice, or are left out whole."
)
_CODE_OF = {mixer: code for code, mixer in CODES.items()}
_MISTRAL_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"),
    *("initializer_range", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"),
    "attention_dropout",
)


def write(model: Model, folder: Path, dtype: str | None) -> None:
    """Write weights and config.json.

    Raises:
        ModelError: the layout has no place for something of the model; says what would fit.
    """
    network = model.network
    check_fit(network, model.name)
    write_tensors(_published_tensors(network, dtype), folder)
    config = _published_config(network)
    if dtype is not None:
        config["torch_dtype"] = dtype
    write_json(folder / "config.json", config)


def check_fit(network: HybridForCausalLM, name: str) -> None:
    """Check that the published layout can hold a model exactly.

    Raises:
        ModelError: it cannot; says why, and what would fit.
    """
    teacher = network.config.teacher
    reasons = []
    if teacher.model_type not in ("mistral", "llama"):
        reasons.append(f"its teacher is of the family {teacher.model_type}, not Mistral or Llama")
    elif any(getattr(teacher, key, False) for key in ("attention_bias", "mlp_bias")):
        reasons.append("its teacher has biases, and Mistral's layers have none")
    foreign = sorted(set(network.layout.mixers) - set(_CODE_OF))
    if foreign:
        reasons.append(f"it has layers of {', '.join(foreign)}")
    for layer, kind in enumerate(network.layout.mixers):
        block = network.model.layers[layer]
        if kind == "identity" and bool(block.mlp.down_proj.weight.any()):
            reasons.append(f"layer {layer} keeps its MLP without a mixer")
    for mixer in network.modules():
        if isinstance(mixer, Mamba1) and not _is_published(mixer):
            reasons.append(f"its mamba1 has repeat: {mixer.repeat} and dt_bias: {mixer.dt_bias}")
            break
    if reasons:
        raise ModelError(f"model {name} is not an Apriel-H1: {'; '.join(reasons)}. {FITS}")


def _is_published(mixer: Mamba1) -> bool:
    return mixer.repeat == "state" and mixer.dt_bias in ("twice", "never")


def _published_tensors(network: HybridForCausalLM, dtype: str | None) -> dict[str, Tensor]:
    """Return the tensors by their published names, and in their published types if known."""
    tensors = cast_tensors(network, dtype)
    for layer, kind in enumerate(network.layout.mixers):
        prefix = f"model.layers.{layer}."
        if kind == "identity":
            tensors = {name: t for name, t in tensors.items() if not name.startswith(prefix)}
        elif kind == "mamba1" and _published(network).get("joint_step"):
            for part in ("weight", "bias"):
                name, step = f"{prefix}mixer.in_proj.{part}", f"{prefix}mixer.dt_in_proj.{part}"
                if step in tensors:
                    tensors[name] = torch.cat([tensors[name], tensors.pop(step)])
    published = _published(network) if dtype is None else {}
    dtypes, usual = published.get("dtypes", {}), published.get("dtype")
    return {
        name: _as_published(tensor, dtypes.get(name, usual)).contiguous()
        for name, tensor in tensors.items()
    }


def _as_published(tensor: Tensor, dtype: str | None) -> Tensor:
    """Return a tensor in its published type if that holds its values exactly."""
    if dtype not in DTYPES or DTYPES[dtype] == tensor.dtype:
        return tensor
    narrow = tensor.to(DTYPES[dtype])
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def _published(network: HybridForCausalLM) -> Mapping[str, Any]:
    published = network.config.published or {}
    return published if published.get("format") == FORMAT else {}


def _published_config(network: HybridForCausalLM) -> dict[str, Any]:
    """Return the values of config.json: those that were read, or those of a training export."""
    if _published(network):
        return dict(_published(network)["config"])
    config, teacher = network.config, network.config.teacher
    values = {name: getattr(teacher, name, None) for name in _MISTRAL_KEYS}
    rope = dict(getattr(teacher, "rope_parameters", None) or {})
    theta = rope.pop("rope_theta", 10_000.0)
    values |= {
        "model_type": APRIEL_H1[0],
        "architectures": ["AprielThinkerSSMHybridForCausalLM"],
        "head_dim": config.head_dim,
        "sliding_window": getattr(teacher, "sliding_window", None),
        "rope_theta": theta,
        "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope,
        "torch_dtype": str(network.model.embed_tokens.weight.dtype).removeprefix("torch."),
        "use_cache": True,
        "hybrid_block_layout": [_CODE_OF[kind] for kind in network.layout.mixers],
        "ssm_cfg": _ssm_cfg(network),
    }
    return values


def _ssm_cfg(network: HybridForCausalLM) -> dict[str, Any]:
    """Return the sizes of the mixer; of a student without one, those of the published models."""
    values: dict[str, Any] = {
        **{"d_state": 16, "d_conv": 4, "expand": 1, "conv_bias": True, "bias": False},
        **{"dt_rank": "auto", "dt_min": 0.001, "dt_max": 0.1, "dt_init": "random"},
        **{"dt_scale": 1.0, "dt_init_floor": 1e-4, "repeat_kv_before_conv": True},
    }
    mixer = next((module for module in network.modules() if isinstance(module, Mamba1)), None)
    if mixer is None:
        return values
    return values | {
        "d_state": mixer.state_size,
        "d_conv": mixer.conv1d.kernel_size[0],
        "d_inner": mixer.inner_size,
        "d_xb": mixer.xb_size,
        "dt_rank": mixer.dt_proj.in_features,
        "conv_bias": mixer.conv1d.bias is not None,
        "bias": mixer.in_proj.bias is not None,
        "dt_proj_bias": mixer.dt_proj.bias is not None,
    }
