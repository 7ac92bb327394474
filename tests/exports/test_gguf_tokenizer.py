"""Tokenizers in GGUF: what is written for each kind; llama.cpp's reading is in tests/engines."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hybridize.core.errors import ModelError
from hybridize.exports.gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNUSED,
    make_tokenizer_keys,
    map_white_space,
)
from hybridize.models.loading import load_tokenizer
from tests.exports.gguf_tokenizers import make_bytes, make_characters

KEY = "tokenizer.ggml."


def test_the_shipped_words_become_pieces_that_begin_with_a_space():
    tokenizer = load_tokenizer("shipped")
    keys = make_tokenizer_keys(tokenizer, 176, [2])
    assert keys[KEY + "model"] == "t5"
    assert keys[KEY + "tokens"][5:9] == [
        f"{SPACE}{word}" for word in ("<think>", "</think>", "<answer>", "</answer>")
    ]
    assert keys[KEY + "tokens"][:3] == ["<pad>", "<bos>", "<eos>"]
    assert keys[KEY + "token_type"][:4] == [CONTROL, CONTROL, CONTROL, NORMAL]
    assert keys[KEY + "token_type"][170:] == [UNUSED] * 6
    assert len(set(keys[KEY + "tokens"])) == len(keys[KEY + "scores"]) == 176
    assert (keys[KEY + "eos_token_id"], keys[KEY + "unknown_token_id"]) == (2, 0)
    assert keys[KEY + "add_bos_token"] is False
    assert "<user>" in keys["tokenizer.chat_template"]


def follow(array, text):
    """Walk the double array as SentencePiece does; return whether the bytes are a key."""
    entry = array[0]
    node = entry >> 10
    for byte in text:
        node ^= byte
        entry = array[node]
        if entry & 0x800000FF != byte:
            return False
        node ^= entry >> 10
    return bool(entry >> 8 & 1) and array[node] == 0


def test_all_white_space_of_one_byte_is_mapped_and_nothing_else():
    blob = map_white_space()
    size = int.from_bytes(blob[:4], "little")
    array = [int.from_bytes(blob[at : at + 4], "little") for at in range(4, 4 + size, 4)]
    assert blob[4 + size :] == b" \0"
    assert {byte for byte in range(1, 256) if follow(array, bytes([byte]))} == set(b"\t\n\v\f\r")
    assert not any(follow(array, bytes([10, byte])) for byte in range(1, 256))


def test_a_byte_level_bpe_keeps_its_merges_and_gets_the_name_of_its_split():
    for split in ("llama-bpe", "qwen2", "smollm", "gpt-2"):
        keys = make_tokenizer_keys(make_bytes(split), 400)
        assert keys[KEY + "model"] == "gpt2"
        assert keys[KEY + "pre"] == split
        assert all(merge.count(" ") == 1 for merge in keys[KEY + "merges"])
        assert keys[KEY + "add_bos_token"] is True


def test_a_bpe_over_characters_gets_scores_from_its_merges():
    tokenizer = make_characters()
    keys = make_tokenizer_keys(tokenizer, 700)
    assert keys[KEY + "model"] == "llama"
    assert keys[KEY + "add_space_prefix"] is True
    assert "merges" not in keys
    tokens, scores = keys[KEY + "tokens"], keys[KEY + "scores"]
    assert keys[KEY + "token_type"][tokens.index("<0x0A>")] == BYTE
    assert scores[tokens.index(SPACE + "t")] > scores[tokens.index(SPACE + "the")]


def test_the_ends_are_those_of_the_model():
    keys = make_tokenizer_keys(make_bytes("qwen2"), 400, [5, 6])
    assert (keys[KEY + "eos_token_id"], keys[KEY + "eot_token_id"]) == (5, 6)


def test_a_model_without_a_tokenizer_gets_numbered_words():
    keys = make_tokenizer_keys(None, 8, [3])
    assert keys[KEY + "tokens"] == [f"{SPACE}t{number}" for number in range(8)]
    assert keys[KEY + "eos_token_id"] == 3
    assert KEY + "eos_token_id" not in make_tokenizer_keys(None, 8)


def wrap(tokenizer):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


WORDS = {"<s>": 0, "</s>": 1, "a": 2}


def lower():
    made = Tokenizer(models.WordLevel(WORDS, unk_token="a"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def punctuated():
    made = Tokenizer(models.WordLevel(WORDS, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def unigram():
    return Tokenizer(models.Unigram([("a", -1.0), ("<s>", -2.0), ("</s>", -3.0)], unk_id=0))


def split_by_itself():
    made = Tokenizer(models.BPE({"a": 0, "<s>": 1, "</s>": 2}, []))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("x", "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    return made


@pytest.mark.parametrize("make", [lower, punctuated, unigram, split_by_itself])
def test_a_tokenizer_that_would_split_text_differently_is_refused(make):
    with pytest.raises(ModelError, match="cannot be written as GGUF"):
        make_tokenizer_keys(wrap(make()), 16)
