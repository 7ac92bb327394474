"""A blend keeps its shares at every length, and its sources' rows in their order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridize.core.errors import RecipeError
from hybridize.training.blend import BlendRows, warn_of_overlap
from tests.training.text_files import open_rows, write
from tests.training.tiny import RandomRows


def blend(*shares):
    return BlendRows([RandomRows(seed) for seed in range(len(shares))], shares)


@given(st.lists(st.integers(1, 50), min_size=2, max_size=5), st.integers(1, 3000))
def test_any_number_of_rows_has_the_shares(weights, num_rows):
    shares = [weight / sum(weights) for weight in weights]
    rows = blend(*shares)
    seen = [0] * len(shares)
    for index in range(num_rows):
        source, row = rows.place(index)
        assert row == seen[source]
        seen[source] += 1
    for count, share in zip(seen, shares, strict=True):
        assert abs(count - share * num_rows) < len(shares)


def test_rows_are_those_of_the_sources():
    rows = blend(0.7, 0.3)
    for index in (0, 5, 999_999_999):
        source, row = rows.place(index)
        wanted = RandomRows(source).row(row)
        assert torch.equal(rows.row(index).input_ids_T, wanted.input_ids_T)
    assert [rows.place(index)[0] for index in range(10)].count(1) == 3
    assert rows.identity != blend(0.6, 0.4).identity


def test_a_pass_ends_where_the_first_source_comes_again(tmp_path):
    texts = open_rows(write(tmp_path / "x.jsonl", [{"text": "a " * 13}] * 20), length=16)
    rows = BlendRows([RandomRows(), texts], [0.75, 0.25])
    assert rows.rows_per_pass == 80 and blend(0.5, 0.5).rows_per_pass is None
    assert rows.summary.startswith("75.0% RandomRows\n25.0% ")


def test_prompts_that_are_trained_and_measured_on_are_warned_of(tmp_path, caplog):
    one = open_rows(write(tmp_path / "one.jsonl", [{"text": "a"}, {"text": "b"}, {"text": "b"}]))
    two = open_rows(write(tmp_path / "two.jsonl", [{"text": "b"}, {"text": "c"}]))
    warn_of_overlap(BlendRows([RandomRows(sequence_length=32), one], [0.5, 0.5]), two)
    assert "1 of 2 held-out prompts are trained on too" in caplog.text
    caplog.clear()
    three = open_rows(write(tmp_path / "three.jsonl", [{"text": "d"}]))
    warn_of_overlap(one, three)
    warn_of_overlap(RandomRows(), RandomRows())
    assert not caplog.records


def test_shares_and_lengths_that_do_not_fit_are_refused():
    for shares in ((0.7, 0.2), (1.0, 0.0), (0.5, 0.3, 0.2)):
        with pytest.raises(RecipeError, match="Give one share above 0 a source"):
            BlendRows([RandomRows(0), RandomRows(1)], shares)
    with pytest.raises(RecipeError, match=r"rows of \[8, 16\] tokens"):
        BlendRows([RandomRows(0), RandomRows(1, sequence_length=8)], [0.5, 0.5])
