"""Small tokenizers of the kinds that published teachers have, trained on a page of text."""

import json

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from hybridize.exports.gguf_tokenizer import SPLITS

TEXT = [
    "the cat sat on the mat, and the dog didn't; it's 1234567 o'clock and we'll see THE END.",
    "def f(x):\n    return x + 1\n\n\n# naïve café, 東京 — пять\t!\r\n   trailing   spaces   ",
    "then they thought that there were three thousand things, or 3,000, in the theatre.",
] * 3
SAMPLES = [
    *TEXT[:3],
    "  two spaces,\n\nthen lines\n \n",
    "I'VE they'Re 12 123 1234 a1b2 x²",
    "emoji 🙂 and ünïcödé",
    "<|user|>the cat<|end|> sat",
]
"""Texts that are to be split alike."""


def _finish(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>", "<|user|>"])
    begin = tokenizer.token_to_id("<|begin|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>"
    )


def make_bytes(split: str) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with the split that llama.cpp calls so."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=split == "llama-bpe"))
    if split == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif split == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    else:
        pattern = next(regex for regex, name in SPLITS.items() if name == split)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return _finish(tokenizer)


def make_characters() -> PreTrainedTokenizerFast:
    """Train a BPE with bytes to fall back on, in the form of Llama 2."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    # Words are cut for training only, so that no piece spans a space.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=pieces, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.pre_tokenizer = None
    return _plain(tokenizer)


def _plain(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Make the bytes ordinary pieces again, as published tokenizers have them."""
    values = json.loads(tokenizer.to_str())
    values["added_tokens"] = [one for one in values["added_tokens"] if one["content"] == "<unk>"]
    return _finish(Tokenizer.from_str(json.dumps(values)))
