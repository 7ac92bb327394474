"""What vLLM serves of our folders and of stock ones, decided from config.json alone."""

from collections.abc import Mapping
from typing import Any

from hybridize.core.apriel_h1 import is_apriel_h1, translate
from hybridize.core.errors import ModelError
from hybridize.core.families import FAMILIES

MIXERS = ("attention", "gated_delta", "identity", "mamba1", "mamba2", "sliding")
"""Kinds that the layers of `hybridize.vllm_plugin` can be."""
ROPES = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions that vLLM turns as transformers does."""


def needs_plugin(config: Mapping[str, Any]) -> bool:
    """Tell whether vLLM needs this package beside it to serve a folder."""
    return config.get("model_type") == "hybridize" or is_apriel_h1(config)


def find_obstacle(config: Mapping[str, Any]) -> str | None:
    """Say in one sentence why vLLM cannot serve a folder, or return None.

    Args:
        config: values of config.json, of a student, a published Apriel-H1 or a stock folder.
    """
    if not needs_plugin(config):
        return _check_stock(config)
    try:
        teacher, mixers = _read(config)
    except (ModelError, KeyError, TypeError) as error:
        return f"its config.json cannot be read: {error}"
    family = teacher.get("model_type")
    if family not in FAMILIES:
        return f"its teacher is of the family {family!r}, and the plugin has {', '.join(FAMILIES)}."
    foreign = [kind for kind in mixers if kind not in MIXERS]
    if foreign:
        return f"its mixer {foreign[0]} is not one of those of the plugin: {', '.join(MIXERS)}."
    rope = teacher.get("rope_parameters") or teacher.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROPES:
        return f"its rotary positions are {kind}, and the plugin has {', '.join(ROPES)}."
    return None


def _read(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    if is_apriel_h1(config):
        found = translate(config, None, "config.json")
        return found.teacher, found.mixers
    teacher = config["teacher"]
    if not isinstance(teacher, Mapping):
        raise ModelError("teacher is no mapping of values. Copy the config.json of a student.")
    return teacher, config.get("mixers") or ["attention"] * int(teacher["num_hidden_layers"])


def _check_stock(config: Mapping[str, Any]) -> str | None:
    """Find what vLLM's own classes would take and answer wrongly."""
    if config.get("model_type") != "granitemoehybrid":
        return None
    width, heads = config.get("head_dim"), config.get("num_attention_heads")
    hidden = config.get("hidden_size")
    if width and heads and hidden and width * heads != hidden:
        return (
            f"its {heads} heads of {width} are not as wide as its hidden size {hidden}, and vLLM's "
            "class would answer wrongly: export again (zero heads are added where they fit), or "
            "serve the student's own folder."
        )
    return None
