"""The tokenizer of a GGUF file: the one of llama.cpp's that splits text as the model's own does.

Three kinds have a twin there: byte-level BPE with one of the splits that llama.cpp knows by name,
BPE over characters with bytes to fall back on (as trained by SentencePiece), and whole words
between white space. What has none is refused: a text split differently is a wrong prompt.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hybridize.core.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How the vocabularies of SentencePiece write a space."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    _CONTRACTIONS + _LETTERS + r"|\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + _LETTERS + r"|\p{N}" + _REST: "qwen2",
}
"""Regular expression of a byte-level BPE's first split -> llama.cpp's name of it."""
_WORDS, _CHARACTERS, _BYTES, _NAMES = "t5", "llama", "gpt2", "bert"
_ENDS = ("eos", "eot", "eom")

Keys = dict[str, Any]


def make_tokenizer_keys(tokenizer: Any, vocab_size: int, ends: Sequence[int] = ()) -> Keys:
    """Return the keys of a tokenizer; numbered words for a model without one.

    Args:
        tokenizer: of Hugging Face; None writes words t0, t1, ... for clients that send token ids.
        vocab_size: rows of the embedding; those beyond the tokenizer become unused tokens.
        ends: tokens that end an answer, if not the tokenizer's; at most three.

    Raises:
        ModelError: llama.cpp has no tokenizer that splits text as this one.
    """
    if tokenizer is None:
        return _name_all(vocab_size) | _name_ends(ends)
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = values["model"]["type"]
    if kind == "WordLevel":
        keys = _make_words(values)
    elif kind == "BPE" and values["model"].get("byte_fallback"):
        keys = _make_characters(values)
    elif kind == "BPE":
        keys = _make_bytes(values)
    else:
        raise _refuse(f"it is a {kind}")
    texts, types = _list_tokens(tokenizer, values, vocab_size, word_level=kind == "WordLevel")
    if keys["tokenizer.ggml.model"] != _BYTES:
        keys["tokenizer.ggml.scores"] = _score(texts, keys.pop("merges", None))
    ids = tokenizer("a", add_special_tokens=True).input_ids
    keys |= {
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_bos_token": bool(ids) and ids[0] == tokenizer.bos_token_id,
        "tokenizer.ggml.add_eos_token": bool(ids) and ids[-1] == tokenizer.eos_token_id,
        "tokenizer.ggml.add_sep_token": False,
    }
    named = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "padding": tokenizer.pad_token_id,
        "unknown": _find_unknown(values["model"], tokenizer),
    }
    keys |= {
        f"tokenizer.ggml.{name}_token_id": number
        for name, number in named.items()
        if number is not None
    }
    keys |= _name_ends(ends)
    if isinstance(tokenizer.chat_template, str):
        keys["tokenizer.chat_template"] = tokenizer.chat_template
    return keys


def _refuse(reason: str) -> ModelError:
    return ModelError(
        f"its tokenizer cannot be written as GGUF: {reason}, and llama.cpp has none that splits "
        "text so. Known: words between white space, SentencePiece's BPE with bytes to fall back "
        f"on, and byte-level BPE split as in {', '.join(SPLITS.values())}, smollm or gpt-2. "
        "Remove the tokenizer from the folder for a file that is spoken to in token ids."
    )


def _make_words(values: Mapping[str, Any]) -> Keys:
    """Write whole words as pieces that begin with a space: a text of known words has one split.

    A word that is unknown here is one token; there, a run of them may be one, or a known word that
    it begins with and an unknown rest.
    """
    split = (values.get("pre_tokenizer") or {}).get("type")
    if split != "WhitespaceSplit" or values.get("normalizer"):
        raise _refuse(f"it is of whole words split by {split}")
    return {
        "tokenizer.ggml.model": _WORDS,
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
        "tokenizer.ggml.precompiled_charsmap": map_white_space(),
    }


def map_white_space() -> bytes:
    """Return a normalizer in SentencePiece's binary form that turns tabs and line ends into spaces.

    It is a double array trie over bytes (number of bytes of the array, the array as 32-bit
    numbers, the replacements): an entry holds the byte that leads to it, whether a key ends there,
    and what to combine its own number with for the entries below it. Keys of one byte need a root
    and two entries each.
    """
    root, ends, num_entries = 256, 512, 1024
    entries = [0] * num_entries
    entries[0] = root << 10
    for byte in b"\t\n\v\f\r":
        entries[root ^ byte] = (ends << 10) | 1 << 8 | byte
    array = b"".join(entry.to_bytes(4, "little") for entry in entries)
    return len(array).to_bytes(4, "little") + array + b" \0"


def _make_characters(values: Mapping[str, Any]) -> Keys:
    """Write a BPE whose pieces mark spaces; merges become scores of the pieces they make."""
    normalizer = json.dumps(values.get("normalizer") or {})
    split = values.get("pre_tokenizer") or {}
    prefix = '"prepend"' in normalizer or split.get("prepend_scheme") in ("first", "always")
    known = {"Prepend", "Replace", "Sequence"} >= _types(values.get("normalizer"))
    if not known or split.get("type") not in (None, "Metaspace"):
        raise _refuse("it changes text in other ways than writing its spaces as pieces")
    return {
        "tokenizer.ggml.model": _CHARACTERS,
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": prefix,
        "merges": values["model"]["merges"],
    }


def _make_bytes(values: Mapping[str, Any]) -> Keys:
    """Write a BPE over bytes, with the name llama.cpp has for its first split."""
    if _types(values.get("normalizer")) - {"Sequence", "NFC"}:
        raise _refuse("it normalizes text")
    split = values.get("pre_tokenizer") or {}
    name = _name_split(split.get("pretokenizers", [split]))
    if name is None:
        raise _refuse("it is a byte-level BPE with a split of its own")
    pairs = values["model"]["merges"]
    return {
        "tokenizer.ggml.model": _BYTES,
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.merges": [
            pair if isinstance(pair, str) else " ".join(pair) for pair in pairs
        ],
        "tokenizer.ggml.add_space_prefix": bool(split.get("add_prefix_space", False)),
    }


def _name_split(steps: list[Mapping[str, Any]]) -> str | None:
    """Return llama.cpp's name for the steps before a byte-level BPE, or None."""
    *first, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if not first:
        return "gpt-2" if last.get("use_regex", True) else None
    if len(first) > 1:
        return None
    if first[0].get("type") == "Digits" and first[0].get("individual_digits"):
        return "smollm" if last.get("use_regex", True) else None
    if first[0].get("type") == "Split" and not last.get("use_regex", True):
        return SPLITS.get(first[0]["pattern"].get("Regex", ""))
    return None


def _types(normalizer: Mapping[str, Any] | None) -> set[str]:
    if not normalizer:
        return set()
    inner = [_types(one) for one in normalizer.get("normalizers", [])]
    return {normalizer["type"]}.union(*inner)


def _list_tokens(
    tokenizer: Any, values: Mapping[str, Any], vocab_size: int, *, word_level: bool
) -> tuple[list[str], list[int]]:
    """Return the text and the type of each token."""
    texts = [f"[UNUSED_{token}]" for token in range(vocab_size)]
    types = [UNUSED] * vocab_size
    bytes_fall_back = bool(values["model"].get("byte_fallback"))
    for text, token in tokenizer.get_vocab().items():
        texts[token], types[token] = (SPACE + text if word_level else text), NORMAL
        if bytes_fall_back and len(text) == 6 and text.startswith("<0x"):
            types[token] = BYTE
    for added in values.get("added_tokens", []):
        texts[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return texts, types


def _score(texts: list[str], merges: list[Any] | None) -> list[float]:
    """Score pieces: the earlier a merge makes one, the higher; whole words are all the same."""
    if merges is None:
        return [-1.0] * len(texts)
    rank: dict[str, int] = {}
    for place, pair in enumerate(merges):
        rank.setdefault("".join(pair.split(" ", 1) if isinstance(pair, str) else pair), place)
    return [-float(rank.get(text, len(merges))) for text in texts]


def _find_unknown(model: Mapping[str, Any], tokenizer: Any) -> int | None:
    """Return the token of what is unknown; whole words need one, if only that of padding."""
    if model.get("unk_token") is not None:
        return int(tokenizer.convert_tokens_to_ids(model["unk_token"]))
    return (tokenizer.pad_token_id or 0) if model["type"] == "WordLevel" else None


def _name_ends(ends: Sequence[int]) -> Keys:
    """Name the tokens that end an answer: of the text, of a turn, of a message."""
    return {f"tokenizer.ggml.{name}_token_id": n for name, n in zip(_ENDS, ends, strict=False)}


def _name_all(vocab_size: int) -> Keys:
    """Name every token after its number, for clients that send and read token ids.

    Of the tokenizers of whole words, that of BERT has no token that ends a text unless it is given
    one; to a text, though not to token ids, llama.cpp adds the first token at both ends.
    """
    return {
        "tokenizer.ggml.model": _NAMES,
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [f"{SPACE}t{token}" for token in range(vocab_size)],
        "tokenizer.ggml.token_type": [NORMAL] * vocab_size,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.seperator_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 0,
    }
