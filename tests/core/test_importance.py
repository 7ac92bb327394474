"""Importance ranks layers, correlates ranks, and reads back what it writes."""

import pytest

from hybridize.core.errors import ModelError, RunError
from hybridize.core.importance import Importance, LayerScore, spearman


def make_importance(scores, before=None):
    befores = before or [None] * len(scores)
    entries = tuple(
        LayerScore(layer=layer, score=score, score_before=early, tokens=10, seconds=0.5)
        for layer, (score, early) in enumerate(zip(scores, befores, strict=True))
    )
    return Importance(
        method="replace_one",
        metric="reverse_kl",
        model="teacher",
        layout="AAAA",
        scores=entries,
        mixer="mamba2",
        steps=8,
    )


def test_the_least_important_layer_comes_first_and_ties_keep_their_order():
    importance = make_importance([3.0, 0.5, 2.0, 0.5])
    assert importance.least(3) == (1, 3, 2)
    assert [entry.layer for entry in importance.ranked()] == [1, 3, 2, 0]


def test_more_layers_than_were_measured_are_refused():
    with pytest.raises(ModelError, match="5 least important"):
        make_importance([1.0, 2.0]).least(5)


def test_spearman_of_a_known_example_with_ties():
    assert spearman([1, 2, 2, 4], [10, 20, 30, 30]) == pytest.approx(0.8333333)
    assert spearman([1, 2, 3], [9, 5, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_rank_correlation_needs_every_score_before():
    assert make_importance([1, 2, 3], [10, 20, 30]).rank_correlation() == pytest.approx(1)
    assert make_importance([1, 2, 3], [10, None, 30]).rank_correlation() is None


def test_it_reads_back_what_it_wrote(tmp_path):
    importance = make_importance([3.0, 0.5], [4.0, 0.6])
    importance.save(tmp_path / "importance" / "x.json")
    assert Importance.load(tmp_path / "importance" / "x.json") == importance


def test_a_file_that_is_no_importance_is_refused(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        Importance.load(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"scores": [], "colour": 1}')
    with pytest.raises(RunError, match="not an importance file"):
        Importance.load(tmp_path / "x.json")


def test_it_prints_as_a_table_least_important_first():
    text = repr(make_importance([3.0, 0.5], [4.0, 0.6]))
    assert text.splitlines()[0].startswith("replace_one (reverse_kl) of teacher")
    assert text.splitlines()[2].split() == ["1", "1", "0.5", "-", "0.6"]
