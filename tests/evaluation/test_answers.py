"""Answers are scored as counted by hand; batching changes neither text nor likelihood."""

import math
from types import SimpleNamespace

import pytest
import torch

from hybridize import tasks
from hybridize.evaluation.answers import Answer, answer, problems
from hybridize.evaluation.scores import score
from tests.tiny_tasks import task_student, task_teacher, task_tokenizer

MIXED = ["sort", "recall", "add", "chain", "edit"]


def make_answer(kind, right, *, finished=True, num_tokens=10, log_likelihood=-1.0):
    return Answer(
        kind=kind,
        difficulty=1,
        right=right,
        finished=finished,
        num_tokens=num_tokens,
        log_likelihood=log_likelihood,
        prompt="",
        generated="",
        expected="",
    )


@pytest.fixture(scope="module")
def teacher():
    return task_teacher()


@pytest.fixture(scope="module", params=["AAAA", "AMAM", "MMMM"])
def model(request, teacher):
    return task_student(teacher, request.param)


class Oracle(torch.nn.Module):
    """Writes the reference completion of each problem, changed by a function, then padding."""

    device = torch.device("cpu")

    def __init__(self, asked, change=lambda words: words):
        super().__init__()
        self.tokenizer = task_tokenizer()
        texts = [(one.prompt_text, change(one.completion_text.split())) for one in asked]
        self.completions = {prompt: " ".join(words) for prompt, words in texts}
        self.batches = []

    def generate(self, input_ids, attention_mask, max_new_tokens, do_sample):
        assert not do_sample
        self.batches.append(attention_mask.sum(1).tolist())
        prompts = self.tokenizer.batch_decode(
            [ids[mask.bool()] for ids, mask in zip(input_ids, attention_mask, strict=True)]
        )
        new = [self.tokenizer(self.completions[prompt]).input_ids for prompt in prompts]
        width = min(max_new_tokens, max(map(len, new)))
        rows = [(ids + [0] * width)[:width] for ids in new]
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)

    def forward(self, input_ids, attention_mask, logits_to_keep):
        size = (len(input_ids), logits_to_keep, len(self.tokenizer))
        return SimpleNamespace(logits=torch.zeros(size))


def ask(asked, **how):
    oracle = Oracle(asked, **how)
    return answer(oracle, oracle.tokenizer, asked, max_new_tokens=192, batch=4), oracle


def test_scores_are_those_counted_by_hand():
    answers = [make_answer("add", right, num_tokens=20) for right in (True, True, True, False)]
    answers += [
        make_answer("sort", True, log_likelihood=-3.0),
        make_answer("sort", False, finished=False, num_tokens=30, log_likelihood=-2.0),
    ]
    kinds, overall = score(answers)
    assert list(kinds) == ["add", "sort"]
    assert (kinds["add"].accuracy, kinds["sort"].accuracy) == (0.75, 0.5)
    assert kinds["add"].standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert kinds["sort"].standard_error == pytest.approx(math.sqrt(0.5 * 0.5 / 2))
    assert (kinds["sort"].log_likelihood, kinds["sort"].mean_tokens) == (-2.5, 20)
    assert (kinds["add"].finished, kinds["sort"].finished) == (1.0, 0.5)
    assert (kinds["add"].num_problems, overall.num_problems) == (4, 6)
    assert overall.accuracy == pytest.approx(0.625), "kinds count alike, not problems"
    errors = (kinds["add"].standard_error, kinds["sort"].standard_error)
    assert overall.standard_error == pytest.approx(math.hypot(*errors) / 2)
    assert overall.log_likelihood == pytest.approx(-1.75)


def test_the_standard_error_is_the_spread_of_repeated_evaluations():
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, 50, generator=generator) < 0.3
    accuracies = [
        score([make_answer("add", right) for right in row])[1].accuracy for row in draws.tolist()
    ]
    spread = torch.tensor(accuracies).std().item()
    assert spread == pytest.approx(math.sqrt(0.3 * 0.7 / 50), rel=0.1)


def test_the_problems_of_a_seed_are_held_out_and_the_same_for_all():
    asked = problems(MIXED, num_per_kind=3, seed=2)
    assert [one.kind for one in asked] == [kind for kind in MIXED for _ in range(3)]
    assert asked == problems(MIXED, num_per_kind=3, seed=2)
    assert asked != problems(MIXED, num_per_kind=3, seed=3)
    assert {tasks.split_of(one.prompt) for one in asked} == {"heldout"}


def test_right_completions_are_right_in_the_order_asked():
    asked = problems(MIXED, num_per_kind=2, seed=0)
    answers, oracle = ask(asked)
    assert [one.kind for one in answers] == [one.kind for one in asked]
    for one, problem in zip(answers, asked, strict=True):
        assert one.right
        assert one.finished
        assert one.generated == one.expected == problem.completion_text
        assert one.num_tokens == len(problem.completion_text.split()), "padding does not count"
        assert one.log_likelihood == pytest.approx(-math.log(len(oracle.tokenizer)))
    lengths = [length for batch in oracle.batches for length in batch]
    assert lengths == sorted(lengths), "problems of similar length go together"
    assert max(map(len, oracle.batches)) == 4


def test_wrong_and_unfinished_completions_are_wrong():
    asked = problems(["sort"], num_per_kind=3, seed=0)
    answers, _ = ask(asked, change=lambda words: words[:-3])  # without the last letter
    assert [(one.right, one.finished) for one in answers] == [(False, False)] * 3
    answers, _ = ask(asked, change=lambda words: [*words[:-3], *words[-2:]])
    assert [(one.right, one.finished) for one in answers] == [(False, True)] * 3
    answers, _ = ask(asked, change=lambda words: [*words, "a", "b"])
    assert all(one.right for one in answers), "what follows the end is not read"


def test_the_log_likelihood_is_that_of_a_direct_computation(model):
    asked = problems(MIXED, num_per_kind=2, seed=5)
    asked = [one for one in asked if one.num_words < 300]
    answers = answer(model.network, model.tokenizer, asked, max_new_tokens=1, batch=5)
    for found, problem in zip(answers, asked, strict=True):
        prompt, completion = problem.prompt_text.split(), problem.completion_text.split()
        ids = torch.tensor([model.tokenizer.convert_tokens_to_ids(prompt + completion)])
        with torch.no_grad():
            logs = model.network(ids).logits[0].double().log_softmax(-1)
        places = range(len(prompt), len(prompt) + len(completion))
        direct = sum(logs[place - 1, ids[0, place]].item() for place in places) / len(places)
        assert found.log_likelihood == pytest.approx(direct, abs=1e-5)


def test_a_batch_of_different_lengths_answers_as_one_by_one(model):
    asked = problems(MIXED, num_per_kind=2, seed=6)
    asked = [one for one in asked if one.num_words < 300]
    assert len({one.num_words for one in asked}) > 4
    together, alone = (
        answer(model.network, model.tokenizer, asked, max_new_tokens=12, batch=batch)
        for batch in (len(asked), 1)
    )
    for one, other in zip(together, alone, strict=True):
        assert one.generated == other.generated
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-5)
