"""Shapes of models whose speed is measured with random weights: the values do not change it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hybridize.core.catalog import did_you_mean
from hybridize.core.errors import RecipeError
from hybridize.core.layout import Layout

MOST_POSITIONS = 2**17
_NUMBERS = re.compile(r"\d+(x\d+){2,5}")


@dataclass(frozen=True, kw_only=True)
class RandomShape:
    """Sizes of a Llama."""

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    ffn_size: int
    vocab_size: int

    def make_config(self) -> dict[str, Any]:
        """Return the values of its config.json."""
        return {
            "model_type": "llama",
            "num_hidden_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.hidden_size // self.num_heads,
            "intermediate_size": self.ffn_size,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": MOST_POSITIONS,
            "tie_word_embeddings": False,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }


SHAPES = {
    "llama-1m": "4x128x4x2x352x256",
    "llama-60m": "12x640x10x2x1792x4096",
    "llama-230m": "20x1024x16x4x2816x4096",
    "llama-310m": "28x1024x16x4x2816x4096",
    "llama-1b": "16x2048x32x8x8192x32768",
    "llama-8b": "32x4096x32x8x14336x128256",
}
"""Name -> layers x hidden size x heads x key-value heads x MLP width x vocabulary."""


def find_shape(text: str) -> RandomShape:
    """Read a name in SHAPES, or numbers such as 20x1024x16x4x2816x4096.

    Numbers left out at the end are: as many key-value heads as heads, an MLP of 8/3 of the hidden
    size in whole 64, and 4096 words.

    Raises:
        RecipeError: neither, or sizes that do not fit each other.
    """
    numbers = SHAPES.get(text, text)
    if not _NUMBERS.fullmatch(numbers):
        hint = did_you_mean(text, list(SHAPES))
        raise RecipeError(
            f"{text!r} is not a shape. {hint}Known: {', '.join(SHAPES)}; or give layers x hidden "
            "size x heads [x key-value heads [x MLP width [x vocabulary]]], such as 20x1024x16x4."
        )
    layers, hidden, heads, *rest = map(int, numbers.split("x"))
    ffn_size = -(-hidden * 8 // (3 * 64)) * 64
    kv_heads, ffn, vocab = [*rest, *(heads, ffn_size, 4096)[len(rest) :]]
    if not (layers and heads and kv_heads and ffn and vocab) or hidden % (2 * heads):
        raise RecipeError(
            f"shape {text}: {heads} heads cannot share a hidden size of {hidden} in even parts. "
            "Choose a multiple of twice the heads."
        )
    if heads % kv_heads:
        raise RecipeError(
            f"shape {text}: {heads} heads cannot share {kv_heads} key-value heads evenly. "
            "Choose a number that divides the heads."
        )
    return RandomShape(
        name=text,
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        ffn_size=ffn,
        vocab_size=vocab,
    )


def spread_layout(num_layers: int, share: float, kind: str) -> Layout:
    """Return a layout with a share of its layers converted, attention evenly among them.

    The first of the kept layers stands half a step from the beginning. At least one layer of
    attention is kept while the share is below 1.
    """
    num_converted = round(share * num_layers)
    if share < 1:
        num_converted = min(num_converted, num_layers - 1)
    num_kept = num_layers - num_converted
    kept = {int((place + 0.5) * num_layers / num_kept) for place in range(num_kept)}
    converted: Sequence[int] = [layer for layer in range(num_layers) if layer not in kept]
    return Layout.uniform(num_layers).convert(converted, to=kind)
