"""Draws, votes, pass@k, groups and paired comparisons are those counted by hand."""

import math

import pytest
import torch

from hybridize.core.errors import RecipeError, RunError
from hybridize.core.ranking import Ranked, describe_disagreements
from hybridize.evaluation.answers import Answer, answer, problems
from hybridize.evaluation.paired import compare, mcnemar
from hybridize.evaluation.sampling import Draw, Sampling, keep_likely
from hybridize.evaluation.scores import group, pass_at, score, vote
from tests.tiny_tasks import task_teacher


def make(right, *, kind="add", number=0, sample=0, found="1", difficulty=1, labels=None):
    return Answer(
        kind=kind, difficulty=difficulty, right=right, finished=True, num_tokens=3,
        log_likelihood=-1.0, prompt=f"{kind} {number}", generated="", expected="", sample=sample,
        found=found, prompt_tokens=20, labels=labels or {},
    )  # fmt: skip


def column(rights, **how):
    return [make(right, number=number, **how) for number, right in enumerate(rights)]


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer():
    assert pass_at(4, 1, 1) == pytest.approx(0.25)
    assert pass_at(4, 1, 2) == pytest.approx(0.5), "3 of the 6 pairs hold the right one"
    assert pass_at(4, 2, 4) == 1
    assert pass_at(3, 0, 2) == 0


def test_several_answers_to_a_problem_are_counted_by_problem():
    first = [make(right, sample=place) for place, right in enumerate([True, False, False, True])]
    second = [make(False, number=1, sample=place) for place in range(4)]
    kinds, overall = score(first + second)
    one = kinds["add"]
    assert (one.accuracy, one.num_problems) == (0.25, 2)
    assert one.standard_error == pytest.approx(math.sqrt(0.25**2 / 2)), "over problems"
    assert one.pass_at == {"1": 0.25, "2": pytest.approx(5 / 12), "4": 0.5}
    assert overall.pass_at == one.pass_at and overall.majority == one.majority
    assert score(column([True]))[1].pass_at is None


def test_the_most_frequent_answer_wins_and_of_equals_the_first():
    votes = [("3", False), ("7", True), ("7", True)]
    assert vote([make(right, sample=n, found=found) for n, (found, right) in enumerate(votes)])
    tied = [("3", False), ("7", True), (None, False), (None, False)]
    assert not vote([make(right, sample=n, found=found) for n, (found, right) in enumerate(tied)])
    assert not vote([make(False, found=None)])


def test_groups_are_by_difficulty_length_and_label():
    answers = column([True, True], difficulty=1, labels={"depth": 0.5})
    answers += column([False], difficulty=2, labels={"depth": 1.0})
    found = {(one.by, one.value): (one.accuracy, one.num_problems) for one in group(answers)}
    assert found == {
        ("difficulty", 1): (1.0, 2),
        ("difficulty", 2): (0.0, 1),
        ("length", 32): (pytest.approx(2 / 3), 3),
        ("depth", 0.5): (1.0, 2),
        ("depth", 1.0): (0.0, 1),
    }


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [(0, 0, 1.0), (1, 1, 1.0), (0, 5, 2 / 32), (1, 9, 2 * 11 / 1024), (3, 3, 1.0)],
)
def test_mcnemar_is_the_two_sided_binomial(first, second, wanted):
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(wanted)


def test_a_paired_comparison_counts_what_only_one_answers():
    ours = column([True, True, False, False, True]) + column([True], kind="sort")
    theirs = column([True, False, True, True, True]) + column([True], kind="sort")
    found = compare(ours, theirs, other="teacher")
    one = found.kinds["add"]
    assert (one.both, one.only_model, one.only_other, one.neither) == (2, 1, 2, 0)
    assert one.difference == pytest.approx(-0.2)
    assert one.low <= one.difference <= one.high
    assert found.overall.difference == pytest.approx(-0.1), "kinds count alike"
    assert (found.overall.num_problems, found.overall.both) == (6, 3)
    assert found == compare(ours, theirs, other="teacher")
    assert "right alone 1 : 2" in str(found)
    same = compare(theirs, theirs)
    assert (same.overall.low, same.overall.high, same.overall.p_value) == (0, 0, 1)


def test_answers_to_other_problems_are_not_compared():
    with pytest.raises(RunError, match="answers of h1 are to other problems"):
        compare(column([True]), column([True, False]), other="h1")
    with pytest.raises(RunError, match="Evaluate both with the same suite"):
        compare(column([True]), column([True], kind="sort"))


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(100):
        draws = torch.rand(2, 60, generator=generator)
        ours, theirs = (draws[0] < 0.6).tolist(), (draws[1] < 0.7).tolist()
        one = compare(column(ours), column(theirs)).overall
        covered += one.low <= -0.1 <= one.high
    assert 88 <= covered <= 100


def test_draws_follow_the_distribution_and_not_the_batch():
    logits_BV = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(4000, 4)
    sampling = Sampling(temperature=2.0)
    drawn = Draw(sampling, range(4000))(None, logits_BV).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(shares, (logits_BV[0] / 2).softmax(-1), atol=0.03)
    alone = [Draw(sampling, [seed])(None, logits_BV[:1]).argmax(-1).item() for seed in range(50)]
    assert alone == drawn[:50].tolist()


def test_top_p_keeps_the_likely_tokens():
    logits_BV = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert keep_likely(logits_BV, 0.6).isfinite().tolist() == [[True, True, False, False]]
    assert keep_likely(logits_BV.flip(1), 0.4).isfinite().tolist() == [[False] * 3 + [True]]


@pytest.mark.parametrize(
    "values", [{"samples": 2}, {"samples": 0}, {"top_p": 0}, {"temperature": -1}]
)
def test_draws_that_make_no_sense_are_refused(values):
    with pytest.raises(RecipeError, match="temperature"):
        Sampling(**values)


def test_samples_are_the_same_alone_and_in_a_batch_and_differ_from_each_other():
    model = task_teacher(layers=2)
    asked = problems(["add", "sort"], num_per_kind=2, seed=0)
    how = Sampling(max_new_tokens=6, temperature=1.0, samples=3, seed=5)
    together, alone = (
        answer(model.network, model.tokenizer, asked, batch=batch, sampling=how)
        for batch in (12, 1)
    )
    assert [(one.prompt, one.sample) for one in together] == [
        (problem.prompt, sample) for problem in asked for sample in range(3)
    ]
    assert [one.generated for one in together] == [one.generated for one in alone]
    assert len({one.generated for one in together}) == len(together)


def test_a_disagreement_of_the_two_rankings_is_said():
    models = [Ranked("a", -0.1, 0.5, 0.01), Ranked("b", -0.2, 0.9, 0.01), Ranked("c", -0.3, 0.9, 0)]
    first, *others = describe_disagreements(models)
    assert first.startswith("log-likelihood ranks a before b") and first.endswith("the answers.")
    assert len(others) == 1 and "a before c" in others[0]
    close = [Ranked("a", -0.1, 0.5, 0.1), Ranked("b", -0.2, 0.55, 0.1)]
    assert describe_disagreements(close)[0].endswith("by less than their standard error.")
