"""Rows of tasks: pure functions of their index, packed with whole documents."""

import pytest
import torch

from hybridize import tasks
from hybridize.core.errors import RecipeError
from hybridize.tasks.words import EOS, THINK, VOCABULARY
from hybridize.training.data import TaskRows, batch, read_documents
from tests.training.tiny import RandomRows, WordTokenizer


def words(ids_T):
    return [VOCABULARY[index] for index in ids_T]


def task_rows(**options):
    return TaskRows(WordTokenizer(), **{"sequence_length": 256, "seed": 3, **options})


def same(row, other):
    return all(torch.equal(value, vars(other)[name]) for name, value in vars(row).items())


def test_a_row_depends_on_its_index_alone():
    forward, backward = task_rows(), task_rows()
    rows = [forward.row(index) for index in range(6)]
    again = [backward.row(index) for index in reversed(range(6))]
    assert all(same(a, b) for a, b in zip(rows, reversed(again), strict=True))
    assert not same(rows[0], rows[1])
    assert not same(rows[0], task_rows(seed=4).row(0))


def test_rows_hold_whole_documents_and_little_padding():
    source = task_rows()
    padded = 0
    for index in range(20):
        row = source.row(index)
        padded += int((row.segments_T == 0).sum())
        for number in range(1, int(row.segments_T.max()) + 1):
            document = words(row.input_ids_T[row.segments_T == number])
            assert document[0] == "<bos>" and document[-1] == EOS
            assert document.count(EOS) == 1
    assert padded / (20 * 256) < 0.1


def test_only_the_solution_counts():
    row = task_rows().row(0)
    for number in range(1, int(row.segments_T.max()) + 1):
        here_T = row.segments_T == number
        document, mask = words(row.input_ids_T[here_T]), row.loss_mask_T[here_T].tolist()
        start = document.index(THINK) + 1
        assert mask == [False] * start + [True] * (len(document) - start)
    assert not row.loss_mask_T[row.segments_T == 0].any()


def test_of_plain_text_all_but_the_first_token_of_a_document_counts():
    row = task_rows(style="text", sequence_length=512).row(2)
    starts_T = row.segments_T != torch.roll(row.segments_T, 1)
    starts_T[0] = True
    assert torch.equal(row.loss_mask_T, (row.segments_T > 0) & ~starts_T)
    assert THINK not in words(row.input_ids_T)


def test_documents_come_out_of_rows_as_they_went_in():
    rows = task_rows()
    found = read_documents(rows)
    row = rows.row(0)
    assert int(row.segments_T.max()) > 1
    for segment in range(1, int(row.segments_T.max()) + 1):
        ids, num_before = next(found)
        inside_T = row.segments_T == segment
        assert ids == row.input_ids_T[inside_T].tolist()
        counted_T = row.loss_mask_T[inside_T]
        assert counted_T[num_before:].all() and not counted_T[:num_before].any()
    assert next(found)[0] == rows.row(1).input_ids_T[rows.row(1).segments_T == 1].tolist()


def test_mix_and_split_are_kept():
    source = task_rows(mix={"sort": 1.0}, split="heldout")
    text = " ".join(words(source.row(0).input_ids_T[source.row(0).segments_T == 1]))
    prompt = text.split("<user> ")[1].split(" <assistant>")[0]
    assert prompt.startswith("sort") and tasks.split_of(prompt) == "heldout"
    assert source.identity != task_rows(mix={"sort": 1.0}).identity


def test_a_document_that_never_fits_is_an_error_that_says_so():
    with pytest.raises(RecipeError, match=r"fits into sequence_length 12. Raise it"):
        task_rows(sequence_length=12).row(0)


def test_a_tokenizer_that_is_not_word_level_is_asked_itself():
    class Shifted(WordTokenizer):
        def __call__(self, text, *, add_special_tokens=True):
            ids = super().__call__(text, add_special_tokens=add_special_tokens)["input_ids"]
            return {"input_ids": [index + 1 for index in ids]}

    shifted = TaskRows(Shifted(), sequence_length=256, seed=3).row(1)
    row = task_rows().row(1)
    inside_T = row.segments_T > 0
    assert torch.equal(shifted.input_ids_T[inside_T], row.input_ids_T[inside_T] + 1)


def test_predicting_places_stand_before_the_tokens_that_count():
    rows = batch(RandomRows(), 5, 3)
    assert rows.first_row == 5 and rows.input_ids_BT.shape == (3, 16)
    counted = {
        row * 16 + place - 1
        for row in range(3)
        for place in range(1, 16)
        if rows.loss_mask_BT[row, place]
    }
    assert set(rows.predicting_N.tolist()) == counted
    assert rows.num_counted == len(counted)
