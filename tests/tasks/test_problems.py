"""Problems are pure functions of their numbers, right by an independent solver, and never leak."""

import hashlib
from random import Random

import pytest

from hybridize import tasks
from hybridize.tasks.kinds import KINDS, Kind
from hybridize.tasks.words import BOS, EOS, THINK, VOCABULARY
from tests.tasks.solvers import SOLVERS, last_of_thinking, solve

SPLITS = ("train", "heldout")
DIGESTS = {
    "recall": "86f79a029061",
    "add": "f6a12db51169",
    "chain": "c98764ce4a34",
    "sort": "240865430ba9",
    "edit": "18eb348e21ac",
}
"""Of the first 50 problems of seed 0: the shipped teacher was trained on what this code draws."""


def draw(kind, num, split="train", **how):
    return [tasks.make(kind, seed=0, index=index, split=split, **how) for index in range(num)]


def text_of(problem):
    return f"{problem.prompt_text} {problem.completion_text}"


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_a_solver_that_reads_the_prompt_alone_agrees(self, kind):
        for split in SPLITS:
            for problem in draw(kind, 200, split):
                assert solve(problem) == problem.answer, problem.prompt

    def test_the_reasoning_ends_in_the_answer(self, kind):
        for problem in draw(kind, 200):
            assert last_of_thinking(problem) == problem.answer, problem.thinking

    def test_the_same_numbers_give_the_same_problem(self, kind):
        assert draw(kind, 20) == draw(kind, 20)
        assert len({problem.prompt for problem in draw(kind, 20)}) == 20
        assert tasks.make(kind, seed=0, index=3) != tasks.make(kind, seed=1, index=3)

    def test_the_problems_are_those_of_the_release(self, kind):
        text = "\n".join(text_of(problem) for problem in draw(kind, 50))
        assert hashlib.sha256(text.encode()).hexdigest()[:12] == DIGESTS[kind]

    def test_all_words_are_in_the_vocabulary(self, kind):
        for problem in draw(kind, 50):
            assert set(text_of(problem).split()) <= set(VOCABULARY)
            assert len(text_of(problem).split()) == problem.num_words

    def test_lengths_stay_within_a_row(self, kind):
        hardest = KINDS[kind].max_difficulty
        lengths = [problem.num_words for problem in draw(kind, 1000)]
        lengths += [problem.num_words for problem in draw(kind, 50, difficulty=1)]
        assert min(lengths) >= 20
        assert max(lengths) <= 1024
        longer = [problem.num_words for problem in draw(kind, 50, difficulty=hardest)]
        assert sum(longer) / 50 > sum(lengths[-50:]) / 50

    def test_difficulty_is_drawn_from_the_trained_ones_or_given(self, kind):
        hardest = KINDS[kind].max_difficulty
        assert {problem.difficulty for problem in draw(kind, 200)} == set(range(1, hardest + 1))
        for problem in draw(kind, 5, difficulty=hardest + 1):
            assert problem.difficulty == hardest + 1
            assert solve(problem) == problem.answer
        with pytest.raises(ValueError, match="difficulty 0"):
            tasks.make(kind, seed=0, index=0, difficulty=0)

    def test_splits_share_no_prompt(self, kind):
        train, heldout = (
            {problem.prompt for problem in draw(kind, 1500, split, difficulty=1)}
            for split in SPLITS
        )
        assert not train & heldout
        assert {tasks.split_of(prompt) for prompt in heldout} == {"heldout"}
        assert {tasks.split_of(prompt) for prompt in train} == {"train"}


def test_splits_share_no_prompt_where_there_are_few(monkeypatch):
    def build(rng: Random, difficulty: int):
        number = str(rng.randrange(100))
        return ["add", ":", *number], ["="], [number]

    monkeypatch.setitem(KINDS, "few", Kind(build=build, max_difficulty=1, sizes="nothing"))
    train, heldout = ({problem.prompt for problem in draw("few", 2000, split)} for split in SPLITS)
    assert not train & heldout
    assert len(train) + len(heldout) == 100, "every prompt has its split, and can be drawn"
    assert 1 <= len(heldout) <= 15


def test_what_grows_with_difficulty():
    def words(kind, difficulty):
        return tasks.make(kind, seed=0, index=0, difficulty=difficulty).prompt.split()

    for difficulty in (1, 3, 5):
        assert words("add", difficulty).index("+") == 2 + difficulty + 1
        assert len(words("sort", difficulty)) == 3 + 4 + 2 * difficulty
        assert words("recall", difficulty).count("=") == 4 * difficulty
        assert words("chain", difficulty).count("=") >= difficulty + 1
        assert words("edit", difficulty).count(";") == 1 + difficulty


def test_a_mix_draws_its_kinds_in_their_shares():
    drawn = [tasks.draw(seed=0, index=i, mix={"sort": 3.0, "add": 1.0}).kind for i in range(800)]
    assert set(drawn) == {"sort", "add"}
    assert 0.70 < drawn.count("sort") / 800 < 0.80
    everything = {tasks.draw(seed=0, index=index, split="heldout").kind for index in range(100)}
    assert everything == set(SOLVERS) == set(KINDS)


def test_a_kind_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"'sorting' is not a kind of task \(known: recall, add"):
        tasks.make("sorting", seed=0, index=0)


def test_text_is_plain_sentences_of_the_vocabulary():
    for split in SPLITS:
        for index in range(100):
            text = tasks.make_text(seed=0, index=index, split=split)
            assert text == tasks.make_text(seed=0, index=index, split=split)
            first, *words, stop, last = text.split()
            assert (first, stop, last) == (BOS, ".", EOS)
            assert 20 <= len(words) + 3 <= 1024
            assert set(words) <= set(VOCABULARY)
            assert tasks.split_of(" ".join([*words, stop])) == split


def test_the_parts_of_a_document_are_marked():
    problem = tasks.make("sort", seed=0, index=0, difficulty=1)
    assert problem.prompt_text.split()[0] == BOS
    assert problem.prompt_text.split()[-1] == THINK
    assert tasks.read_answer(problem.completion_text) == problem.answer


@pytest.mark.parametrize(
    ("generated", "answer"),
    [
        ("a ; </think> <answer> 1 2 </answer> <eos>", "1 2"),
        ("<answer> 1 </answer> <answer> 2 </answer>", "1"),
        ("</think> <answer> 1 2", None),
        ("</think> 1 2 </answer>", None),
        ("<answer> </answer>", None),
        ("</answer> <answer> 3", None),
        ("", None),
    ],
)
def test_the_answer_is_what_stands_between_its_markers(generated, answer):
    assert tasks.read_answer(generated) == answer
