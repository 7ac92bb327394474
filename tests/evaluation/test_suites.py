"""Suites ask what they say, the same for all, held out, and of all lengths and depths."""

import pytest

from hybridize import tasks
from hybridize.core.errors import RecipeError
from hybridize.evaluation.suites import Asked, ask
from tests.tasks import solvers


def small(**values):
    return Asked(**{"problems": 6, **values})


def test_quick_goes_round_the_difficulties_and_full_asks_all():
    quick, full = ask("quick", small()), ask("full", small(problems=2))
    for kind, entry in tasks.KINDS.items():
        levels = list(range(1, entry.max_difficulty + 1))
        asked = sorted(one.problem.difficulty for one in quick if one.problem.kind == kind)
        assert asked == sorted((levels * 2)[:6])
        asked = [one.problem.difficulty for one in full if one.problem.kind == kind]
        assert asked == [level for level in levels for _ in range(2)]
    prompts = [one.problem.prompt for one in full]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("suite", ["tasks", "quick", "recall"])
def test_a_suite_is_held_out_and_the_same_for_one_seed(suite):
    asked = ask(suite, small(problems=2))
    assert asked == ask(suite, small(problems=2)) != ask(suite, small(problems=2, seed=3))
    assert {tasks.split_of(one.problem.prompt) for one in asked} == {"heldout"}


def test_recall_has_each_length_and_depth_and_its_answer_follows_from_the_text():
    asked = ask("recall", small(problems=2, lengths=(64, 400), depths=(0.0, 1.0)))
    assert len(asked) == 8
    for question in asked:
        problem, labels = question.problem, question.labels
        words = len(problem.prompt_text.split())
        assert labels["prompt_length"] - 2 <= words <= labels["prompt_length"] + 14
        assert solvers.solve(problem) == problem.answer
        place = problem.prompt.index(problem.thinking.split(" ;")[0]) / len(problem.prompt)
        assert place < 0.3 if labels["depth"] == 0 else place > 0.6


def test_a_suite_of_ones_own_is_kinds_or_a_function():
    found = ask("tests.tiny_tasks:SHORT_KINDS", small(problems=1))
    assert [one.problem.kind for one in found] == ["add", "sort"]
    assert ask("hybridize.evaluation.suites:ask_quick", small()) == ask("quick", small())
    with pytest.raises(RecipeError, match="hybridize eval TEACHER STUDENT"):
        ask("agreement", small())
