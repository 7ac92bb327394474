"""Limits of what a config.json may ask for, checked before anything is made of it."""

from collections.abc import Mapping
from typing import Any

from hybridize.core.errors import ModelError
from hybridize.core.model_files import tell

LIMITS = {
    "num_hidden_layers": 4096,
    "hidden_size": 2**20,
    "intermediate_size": 2**24,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "vocab_size": 2**26,
    "max_position_embeddings": 2**40,
}
"""Key of config.json -> the largest value that is believed; a hundred times what models have."""


def check_sizes(config: Mapping[str, Any], place: str) -> None:
    """Check the sizes that a config.json states; one that it leaves out, or null, is fine.

    Raises:
        ModelError: a size is no whole number, or beyond its limit.
    """
    for key, limit in LIMITS.items():
        value = config.get(key)
        if value is None:
            continue
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 1 <= value <= limit:
            raise ModelError(
                f"model {place}: {key} in config.json is {tell(value)}, not a whole number from 1 "
                f"to {limit}. Copy the config.json that belongs to the weights."
            )


def check_counts(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], place: str
) -> None:
    """Hold the sizes that decide how much is made of a model against the tensors.

    Args:
        config: values with `num_hidden_layers`, `vocab_size` and `hidden_size`, any left out.
        shapes: name of each tensor in the files -> its shape.
        place: where this was read, for errors.

    Raises:
        ModelError: they disagree.
    """
    layers = {int(part) for part in map(_layer_of, shapes) if part is not None}
    embedding = shapes.get("model.embed_tokens.weight", ())
    held = {"num_hidden_layers": len(layers), "vocab_size": 0, "hidden_size": 0}
    if len(embedding) == 2:
        held |= {"vocab_size": embedding[0], "hidden_size": embedding[1]}
    for key, found in held.items():
        told = config.get(key)
        if told is not None and found and told != found:
            raise ModelError(
                f"model {place}: config.json says {key} {tell(told)}, but the tensors have "
                f"{found}. Copy the config.json that belongs to the weights."
            )


def _layer_of(name: str) -> str | None:
    parts = name.split(".")
    in_layer = parts[:2] == ["model", "layers"] and len(parts) > 3
    return parts[2] if in_layer and parts[2].isascii() and parts[2].isdecimal() else None
