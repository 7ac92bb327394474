"""Rows of stored text: packing, what is held out, long documents, workers and ranks."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridize.core.errors import Interrupted, RecipeError, RunError
from hybridize.tasks.words import LETTERS, VOCABULARY
from hybridize.training.data import batch, read_documents, share_of_rank
from hybridize.training.loop import fit
from hybridize.training.objectives import NextToken
from hybridize.training.optim import OptimizerSettings
from hybridize.training.settings import FitSettings
from hybridize.training.text_rows import read_settings
from tests.training.text_files import documents_of, one_pass, open_rows, text_of, write
from tests.training.tiny import TinyModel


@pytest.fixture
def texts(tmp_path):
    lines = [{"text": " ".join([LETTERS[n % 26]] * (2 + n % 9))} for n in range(40)]
    return write(tmp_path / "texts.jsonl", lines)


def same(row, other):
    return all(torch.equal(value, vars(other)[name]) for name, value in vars(row).items())


def test_each_pass_holds_every_document_once_in_another_order(texts):
    source = open_rows(texts)
    first_rows = source.rows_per_pass
    source.row(first_rows * 3)
    second_rows = source._first_rows[2] - first_rows
    first = documents_of(source, range(first_rows))
    second = documents_of(source, range(first_rows, first_rows + second_rows))
    assert first == second and sum(first.values()) == 40
    assert text_of(source.row(0)) != text_of(source.row(first_rows))
    full = sum(len(document.split()) for document in first.elements())
    assert full / (first_rows * 32) > 0.9


def test_documents_of_a_source_that_ends_are_read_once(texts):
    source = open_rows(texts)
    read = Counter(" ".join(VOCABULARY[n] for n in ids) for ids, _ in read_documents(source))
    assert read == one_pass(source) and sum(read.values()) == 40


def test_the_seed_changes_the_order_alone(texts):
    one, other = open_rows(texts, seed=1), open_rows(texts, seed=2)
    assert one_pass(one) == one_pass(other)
    assert not same(one.row(0), other.row(0)) and one.identity != other.identity


def test_rows_do_not_depend_on_the_order_of_asking(texts):
    one, other = open_rows(texts), open_rows(texts)
    for index in (25, 3, 14, 0):
        one.row(index)
    assert all(same(one.row(index), other.row(index)) for index in range(26))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_rows_are_the_same_for_any_number_of_workers(texts, workers):
    alone, shared = open_rows(texts), open_rows(texts)
    with ThreadPoolExecutor(workers) as pool:
        rows = list(pool.map(shared.row, range(60)))
    assert all(same(row, alone.row(index)) for index, row in enumerate(rows))


def test_a_pass_that_another_thread_counts_meanwhile_is_counted_once(texts):
    alone, shared = open_rows(texts), open_rows(texts)
    opened, shared._first_rows = shared._open, [0]

    def be_overtaken(number):
        packed = opened(number)
        shared._open = opened
        shared.row(0)
        return packed

    shared._open = be_overtaken
    for index in reversed(range(4 * alone.rows_per_pass)):
        assert same(shared.row(index), alone.row(index))


@given(
    first=st.integers(0, 1000),
    rows=st.integers(0, 64),
    ranks=st.integers(1, 9),
)
def test_ranks_share_a_global_batch_evenly_and_in_order(first, rows, ranks):
    shares = [share_of_rank(first, rows, rank, ranks) for rank in range(ranks)]
    assert [row for share in shares for row in share] == list(range(first, first + rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_together_see_the_global_batch(texts, ranks):
    whole = batch(open_rows(texts), 8, 8)
    parts = []
    for rank in range(ranks):
        share = share_of_rank(8, 8, rank, ranks)
        parts.append(batch(open_rows(texts), share.start, len(share)))
    for name in ("input_ids_BT", "segments_BT", "loss_mask_BT"):
        together = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(together, getattr(whole, name))


def test_a_long_document_is_cut_at_the_row_or_left_out_and_counted(tmp_path):
    path = write(tmp_path / "long.jsonl", [{"text": "a " * 50}, {"text": "b c"}])
    cut = open_rows(path, length=20)
    sizes = sorted(len(text.split()) for text in one_pass(cut).elements())
    assert sizes == [4, 12, 20, 20] and cut.num_long == 1
    assert "1 longer than 20 tokens, cut into rows" in cut.summary
    dropped = open_rows(path, length=20, long_documents="drop")
    assert list(one_pass(dropped)) == ["<bos> b c <eos>"]
    assert "1 longer than 20 tokens, left out" in dropped.summary
    path = write(tmp_path / "all.jsonl", [{"text": "a " * 50}])
    with pytest.raises(RunError, match="all 1 documents are longer than sequence_length 20"):
        open_rows(path, length=20, long_documents="drop")


def test_pieces_in_which_nothing_counts_are_left_out(tmp_path):
    record = {"prompt": "a " * 45, "completion": "b"}
    path = write(tmp_path / "prompt.jsonl", [record])
    source = open_rows(path, length=20)
    assert source.rows_per_pass == 1
    row = source.row(0)
    assert text_of(row, row.loss_mask_T) == "b <eos>" and row.segments_T.max() == 1


def test_a_row_of_64k_tokens_isolates_its_documents(tmp_path):
    length = 65_536
    records = [{"text": f"{LETTERS[n % 26]} " * (2_000 + 37 * n)} for n in range(60)]
    source = open_rows(write(tmp_path / "long.jsonl", records), length=length)
    row = source.row(0)
    assert row.input_ids_T.shape == (length,)
    padding_T = row.segments_T == 0
    assert padding_T.float().mean() < 0.1
    num_documents = int(row.segments_T.max())
    assert num_documents > 10
    assert torch.equal(row.segments_T[~padding_T], row.segments_T[~padding_T].sort().values)
    starts_T = torch.diff(row.segments_T, prepend=row.segments_T.new_zeros(1)) > 0
    assert int(starts_T.sum()) == num_documents
    assert torch.equal(row.loss_mask_T, ~padding_T & ~starts_T)
    one = write(tmp_path / "one.jsonl", [{"text": "a " * 70_000}])
    assert open_rows(one, length=length).rows_per_pass == 2


@pytest.fixture
def pairs(tmp_path):
    """Four answers to each of 60 prompts, and each record twice."""
    records = [
        {"prompt": f"{LETTERS[n % 26]} {LETTERS[n // 26]}", "completion": LETTERS[answer]}
        for n in range(60)
        for answer in (0, 1, 2, 3)
    ]
    return write(tmp_path / "pairs.jsonl", records * 2)


def test_a_prompt_is_trained_on_or_held_out_and_never_both(pairs):
    sides = {
        split: one_pass(open_rows(pairs, split=split, heldout_share=0.2))
        for split in ("train", "heldout")
    }
    prompts = {
        split: {tuple(text.split()[1:3]) for text in found} for split, found in sides.items()
    }
    assert not prompts["train"] & prompts["heldout"]
    assert len(prompts["train"] | prompts["heldout"]) == 60
    assert 4 <= len(prompts["heldout"]) <= 22
    assert sides["train"] + sides["heldout"] == one_pass(open_rows(pairs))


def test_the_side_of_a_prompt_does_not_depend_on_the_file_or_the_seed(pairs, tmp_path):
    lines = pairs.read_text().splitlines()[::-1]
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(lines[:300]))
    wanted = {"split": "heldout", "heldout_share": 0.2}
    held = set(one_pass(open_rows(other, seed=7, **wanted)))
    assert held and held <= set(one_pass(open_rows(pairs, **wanted)))


def test_an_empty_side_says_what_to_change(tmp_path):
    path = write(tmp_path / "one.jsonl", [{"text": "a b"}])
    with pytest.raises(RunError, match=r"leaves no document to measure on \(1 in all\)\. Change"):
        open_rows(path, split="heldout", heldout_share=1e-6)
    with pytest.raises(RunError, match="leaves no document to train"):
        open_rows(path, split="train", heldout_share=1.0)


def test_the_summary_counts_what_was_seen(pairs):
    source = open_rows(pairs, split="train", heldout_share=0.2)
    assert "of 480 documents (train, 20% of the prompts held out)" in source.summary
    assert "240 the same as an earlier one" in source.summary


def test_settings_of_text_are_read_from_words():
    settings = read_settings({"split": "heldout", "heldout_share": "5%"})
    assert (settings.split, settings.heldout_share) == ("heldout", 0.05)
    with pytest.raises(RecipeError, match="long_documents 'cut' is not known; it is one of split"):
        read_settings({"long_documents": "cut"})
    with pytest.raises(RecipeError, match="no setting of split"):
        read_settings({"side": "train"})


def test_training_goes_on_in_the_same_rows_and_not_on_a_changed_file(texts, tmp_path):
    settings = FitSettings(
        tokens=8 * 64, tokens_per_step=64, optimizer=OptimizerSettings(lr=1e-2), train=("all",)
    )

    def train(out, **options):
        model = TinyModel(1)
        source = open_rows(texts, cache=tmp_path / "cache")
        fit(model, NextToken(), source, settings, tmp_path / out, **options)
        return model.state_dict()

    whole = train("whole")
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        train("broken", stop=lambda: next(asked))
    continued = train("broken")
    assert all(torch.equal(value, continued[name]) for name, value in whole.items())
    with pytest.raises(Interrupted):
        train("changed", stop=lambda: True)
    with texts.open("a") as file:
        file.write('{"text": "z z z"}\n')
    with pytest.raises(RunError, match=r"of another run.*checksum"):
        train("changed")


def test_several_files_are_read_as_one(tmp_path):
    for n in range(3):
        write(tmp_path / f"part-{n}.jsonl", [{"text": LETTERS[n]}])
    source = open_rows(tmp_path / "part-*.jsonl")
    assert sorted(one_pass(source)) == [f"<bos> {letter} <eos>" for letter in "abc"]
    kept = json.dumps(source.identity, default=str)
    write(tmp_path / "part-3.jsonl", [{"text": "z"}])
    assert json.dumps(open_rows(tmp_path / "part-*.jsonl").identity, default=str) != kept
