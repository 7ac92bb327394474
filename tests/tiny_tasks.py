"""Tiny models of random weights that know the words of the built-in problems, and rows of them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hybridize.core.layout import Layout
from hybridize.models.model import Model
from hybridize.surgery.apply import convert
from hybridize.tasks.words import ASSISTANT, BOS, EOS, PAD, THINK, USER, VOCABULARY
from hybridize.training.data import TaskRows
from tests.tiny import as_student, tiny_teacher

SHORT_KINDS = ("add", "sort")
"""A suite of problems with short prompts."""


def task_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(VOCABULARY)}, unk_token=PAD)
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left"
    )
    tokenizer.chat_template = f"{BOS} {USER} {{{{ messages[-1].content }}}} {ASSISTANT} {THINK}"
    return tokenizer


def task_teacher(*, layers: int = 4, seed: int = 0) -> Model:
    """Return an all-attention model of random weights with the vocabulary of the problems."""
    network = as_student(tiny_teacher(layers=layers, vocab=len(VOCABULARY), seed=seed))
    return Model("teacher", network, task_tokenizer())


def task_student(teacher: Model, strip: str = "AMAM", *, name: str = "student") -> Model:
    """Convert layers of a teacher to the layout of a strip of letters."""
    network = convert(teacher.network, Layout.parse(strip))
    return Model(name, network, teacher.tokenizer)


def shake(model: Model, *, seed: int, name: str) -> Model:
    """Return a copy of a model with other weights, as training would leave it."""
    network = convert(model.network, model.layout)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return Model(name, network, model.tokenizer)


def task_rows(split: str = "train", *, sequence_length: int = 128) -> TaskRows:
    return TaskRows(
        task_tokenizer(),
        sequence_length=sequence_length,
        seed=0,
        split=split,
        mix=dict.fromkeys(SHORT_KINDS, 1.0),
    )


def save_task_teacher(folder: Path, *, layers: int = 4) -> Path:
    """Write a teacher as transformers would, for runs to load."""
    tiny_teacher(layers=layers, vocab=len(VOCABULARY)).save_pretrained(folder)
    task_tokenizer().save_pretrained(folder)
    return folder
