"""Rows of JSONL files: all three forms, packing pass by pass, and errors that name the line."""

import json
from collections import Counter

import pytest
import torch

from hybridize.core.errors import RunError
from hybridize.tasks.words import LETTERS, VOCABULARY
from hybridize.training.jsonl import JsonlRows
from tests.training.tiny import WordTokenizer


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def text_of(row, mask=None):
    keep_T = row.segments_T > 0 if mask is None else mask
    return " ".join(VOCABULARY[index] for index in row.input_ids_T[keep_T])


@pytest.fixture
def texts(tmp_path):
    lines = [{"text": " ".join([LETTERS[n % 26]] * (2 + n % 9))} for n in range(40)]
    return write(tmp_path / "texts.jsonl", lines)


def documents(source, rows):
    found = Counter()
    for index in rows:
        row = source.row(index)
        for number in range(1, int(row.segments_T.max()) + 1):
            found[text_of(row, row.segments_T == number)] += 1
    return found


def test_each_pass_holds_every_document_once_in_another_order(texts):
    source = JsonlRows(texts, WordTokenizer(), sequence_length=32, seed=1)
    first_rows = source.rows_per_pass
    source.row(first_rows * 3)
    second_rows = source._first_rows[2] - first_rows
    first = documents(source, range(first_rows))
    second = documents(source, range(first_rows, first_rows + second_rows))
    assert first == second and sum(first.values()) == 40
    assert text_of(source.row(0)) != text_of(source.row(first_rows))
    full = sum(len(document.split()) for document in first.elements())
    assert full / (first_rows * 32) > 0.9


def test_rows_do_not_depend_on_the_order_of_asking(texts):
    one = JsonlRows(texts, WordTokenizer(), sequence_length=32, seed=1)
    other = JsonlRows(texts, WordTokenizer(), sequence_length=32, seed=1)
    for index in (25, 3, 14, 0):
        one.row(index)
    for index in range(26):
        assert torch.equal(one.row(index).input_ids_T, other.row(index).input_ids_T)


def test_a_long_document_is_cut_at_the_row(tmp_path):
    path = write(tmp_path / "long.jsonl", [{"text": "a " * 50}])
    source = JsonlRows(path, WordTokenizer(), sequence_length=20, seed=0)
    assert source.rows_per_pass == 3
    sizes = sorted(int((source.row(index).segments_T > 0).sum()) for index in range(3))
    assert sizes == [12, 20, 20]


def test_only_completions_count(tmp_path):
    path = write(tmp_path / "pairs.jsonl", [{"question": "a b c", "solution": "d e"}])
    source = JsonlRows(
        path,
        WordTokenizer(),
        sequence_length=12,
        seed=0,
        keys={"prompt": "question", "completion": "solution"},
    )
    row = source.row(0)
    assert text_of(row) == "<bos> a b c d e <eos>"
    assert text_of(row, row.loss_mask_T) == "d e <eos>"


def test_of_a_chat_the_turns_of_the_assistant_count(tmp_path):
    messages = [
        {"role": "user", "content": "a b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "e f"},
    ]
    path = write(tmp_path / "chat.jsonl", [{"messages": messages}])
    row = JsonlRows(path, WordTokenizer(), sequence_length=32, seed=0).row(0)
    assert text_of(row) == (
        "<bos> <user> a b <eos> <assistant> c <eos> <user> d <eos> <assistant> e f <eos>"
    )
    assert text_of(row, row.loss_mask_T) == "c <eos> e f <eos>"


def test_a_template_that_drops_earlier_thoughts_leaves_the_last_turn(tmp_path):
    class Forgetful(WordTokenizer):
        def apply_chat_template(self, messages, **options):
            asked = max(n for n, entry in enumerate(messages) if entry["role"] == "user")
            kept = [
                entry if n >= asked or entry["role"] == "user" else {**entry, "content": "a"}
                for n, entry in enumerate(messages)
            ]
            return super().apply_chat_template(kept, **options)

    turn = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c d"}]
    path = write(tmp_path / "chat.jsonl", [{"messages": turn * 2}])
    row = JsonlRows(path, Forgetful(), sequence_length=32, seed=0).row(0)
    assert text_of(row, row.loss_mask_T) == "c d <eos>"


def test_the_cache_is_read_until_the_file_changes(texts, tmp_path):
    def open_rows(tokenizer):
        return JsonlRows(texts, tokenizer, sequence_length=32, seed=1, cache=tmp_path / "cache")

    first = open_rows(WordTokenizer())
    again = WordTokenizer()
    second = open_rows(again)
    assert again.calls == 0 and second.identity == first.identity
    assert torch.equal(first.row(2).input_ids_T, second.row(2).input_ids_T)
    with texts.open("a") as file:
        file.write('{"text": "z z z"}\n')
    changed = open_rows(again)
    assert again.calls > 0 and changed.identity != first.identity


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "does not exist or has no whole line"),
        ([{"body": "a"}], "line 1 has the keys body, and none of text, messages"),
        ([{"text": "a b"}, {"words": "a"}], "line 2 has no 'text'"),
        ([{"messages": [{"role": "user", "content": "a"}]}], "line 1 has no token to learn"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a"}], "line 2 has no 'completion'"),
    ],
)
def test_errors_name_the_line(tmp_path, lines, message):
    path = write(tmp_path / "bad.jsonl", lines)
    with pytest.raises(RunError, match=message):
        JsonlRows(path, WordTokenizer(), sequence_length=32, seed=0)
