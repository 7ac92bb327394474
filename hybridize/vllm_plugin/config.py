"""What config.json says, in vLLM's words: the teacher's values and the mixer of each layer.

vLLM counts keys and values by `layer_types`. Windows of attention are not shown to it there, or in
`sliding_window`, which it would apply to every layer: each layer is given its own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hybridize.core.apriel_h1 import translate
from hybridize.core.auto_names import APRIEL_H1
from hybridize.core.errors import ModelError
from hybridize.core.families import FAMILIES
from hybridize.core.model_files import INDEX, WEIGHTS, list_tensors
from hybridize.core.vllm import find_obstacle
from hybridize.vllm_plugin import ARCHITECTURE

STATELESS = ("attention", "identity")
COPIED = (
    "attention_multiplier",
    "bos_token_id",
    "embedding_multiplier",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "logits_scaling",
    "max_position_embeddings",
    "no_rope_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "residual_multiplier",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "vocab_size",
)
"""Values of the teacher's configuration, where its family has them."""


class HybridConfig(PreTrainedConfig):
    """The configuration of a student as the layers of this package read it."""

    model_type = "hybridize"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read the values of a student's config.json.

        Raises:
            ModelError: it is not served; see `hybridize.core.vllm`.
        """
        if "window_of_layer" in config_dict:  # already in vLLM's words
            return super().from_dict(config_dict, **kwargs)
        _check(config_dict)
        teacher: Mapping[str, Any] = config_dict["teacher"]
        mixers = config_dict.get("mixers") or ["attention"] * int(teacher["num_hidden_layers"])
        values = flatten(teacher, mixers, config_dict.get("mixer_options") or {})
        return super().from_dict(values | _get_dtype(config_dict), **kwargs)


class AprielH1Config(HybridConfig):
    """The configuration of a published Apriel-H1 checkpoint."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Translate the published values, with the tensors' sizes where they are at hand.

        Raises:
            ModelError: it is not served, or config.json and the tensors disagree.
        """
        if "window_of_layer" in config_dict:
            return super().from_dict(config_dict, **kwargs)
        _check(config_dict)
        folder = Path(str(kwargs.get("name_or_path") or config_dict.get("_name_or_path") or "?"))
        shapes = None
        if any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
            shapes = {name: place.shape for name, place in list_tensors(folder).items()}
        found = translate(config_dict, shapes, str(folder))
        values = flatten(found.teacher, found.mixers, found.mixer_options)
        values |= {"left_out": list(found.left_out), **_get_dtype(config_dict)}
        return super().from_dict(values, **kwargs)


def flatten(
    teacher: Mapping[str, Any], mixers: list[str], options: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return one flat set of values."""
    family = str(teacher["model_type"])
    # Transformers' own class fills in what the file leaves out, and unifies spellings of RoPE.
    whole = CONFIG_MAPPING[family](**teacher)
    values = {name: getattr(whole, name) for name in COPIED if hasattr(whole, name)}
    sizes = FAMILIES[family]
    heads = values["num_attention_heads"]
    known = whole.to_dict()
    window = known.get("sliding_window")
    return values | {
        "architectures": [ARCHITECTURE],
        "family": family,
        "head_dim": values.get("head_dim") or values["hidden_size"] // heads,
        "num_key_value_heads": values.get("num_key_value_heads") or heads,
        "qkv_bias": _has(known, sizes.qkv_bias),
        "o_bias": _has(known, sizes.o_bias),
        "mlp_bias": _has(known, sizes.mlp_bias),
        "qk_norm": sizes.qk_norm,
        "window_of_layer": [
            window if window and sizes.slides(known, layer) else None
            for layer in range(len(mixers))
        ],
        "mixers": list(mixers),
        "mixer_options": {kind: dict(values) for kind, values in options.items()},
        "left_out": [],
        "layer_types": [
            "full_attention" if kind in STATELESS else "linear_attention" for kind in mixers
        ],
    }


def register_configs() -> None:
    """Make transformers read our folders, and published ones, with the classes of this file."""
    CONFIG_MAPPING.register(HybridConfig.model_type, HybridConfig, exist_ok=True)
    for model_type in APRIEL_H1:
        CONFIG_MAPPING.register(model_type, AprielH1Config, exist_ok=True)


def _check(values: Mapping[str, Any]) -> None:
    obstacle = find_obstacle(values)
    if obstacle is not None:
        raise ModelError(f"the model cannot be served in vLLM: {obstacle}")


def _has(values: Mapping[str, Any], bias: bool | str) -> bool:
    return bool(values.get(bias)) if isinstance(bias, str) else bias


def _get_dtype(values: Mapping[str, Any]) -> dict[str, Any]:
    dtype = values.get("dtype") or values.get("torch_dtype")
    return {} if dtype is None else {"dtype": dtype}
