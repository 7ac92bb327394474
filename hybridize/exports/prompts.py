"""Prompts for the verification of an export: texts of different lengths, as token ids."""

import random
from collections.abc import Sequence

from hybridize.exports.expected import NEW_TOKENS
from hybridize.models.model import Model

_LENGTHS = (1, 5, 17, 64, 100, 257, 300)
"""Tokens of the drawn prompts, and cuts of the longest text: engines scan 256 at a time."""
_CUTS = (1, 17, 300)


def make_prompts(model: Model, texts: Sequence[str]) -> list[list[int]]:
    """Return each text as tokens, and cuts of all of them one after the other, over and over.

    Where there is no tokenizer, or no text, tokens are drawn; the seed is fixed.

    Args:
        model: whose tokenizer reads the texts, and whose positions they fit.
        texts: what the model could be asked.
    """
    config = model.network.config
    room = max(1, (config.max_position_embeddings or 4096) - NEW_TOKENS)
    if model.tokenizer is None or not texts:
        draw = random.Random(0)
        top = config.vocab_size - 1
        return [[draw.randint(0, top) for _ in range(min(n, room))] for n in _LENGTHS]
    rows = list(encode(model, texts).values())
    whole = [token for row in rows for token in row]
    whole *= 1 + max(_CUTS) // max(1, len(whole))
    rows += [whole[:length] for length in _CUTS]
    return [row[:room] for row in rows if row]


def encode(model: Model, texts: Sequence[str]) -> dict[str, list[int]]:
    """Return the tokens of each text; nothing where there is no tokenizer."""
    if model.tokenizer is None:
        return {}
    return {
        text: list(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
    }
