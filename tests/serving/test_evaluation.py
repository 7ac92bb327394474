"""A served model answers problems as the same model does in this process."""

import json

import pytest
import torch

from hybridize.core.errors import MachineError, RecipeError
from hybridize.evaluation.endpoint import Endpoint
from hybridize.evaluation.sampling import Sampling
from hybridize.evaluation.subjects import InProcess
from hybridize.evaluation.suites import Asked, ask
from hybridize.evaluation.texts import continue_texts, score_pairs
from hybridize.models.model import load
from hybridize.stages import evaluate
from hybridize.stages.evaluate import EvaluateSettings

SETTINGS = EvaluateSettings(
    suite="tests.tiny_tasks:SHORT_KINDS", problems=3, max_new_tokens=12, batch=3
)


@pytest.fixture(scope="module")
def client(start):
    return start()


@pytest.fixture(scope="module")
def inside(folder):
    return InProcess.of(load(folder, name="mixed"))


@pytest.fixture(scope="module")
def endpoint(client, inside):
    return Endpoint(client.url, inside.tokenizer)


def test_both_give_the_same_answers(endpoint, inside, tmp_path):
    scores = evaluate.run_all([inside, endpoint_of(endpoint, "served")], SETTINGS, tmp_path)
    here, there = (
        [json.loads(line) for line in (tmp_path / name / "answers.jsonl").read_text().splitlines()]
        for name in ("mixed", "served")
    )
    for mine, theirs in zip(here, there, strict=True):
        unknown = {"log_likelihood": None}
        assert {**mine, **unknown} == {**theirs, **unknown}
        assert mine["log_likelihood"] == pytest.approx(theirs["log_likelihood"], abs=1e-5)
    served = scores[1]
    assert served.machine["tells_log_likelihood"]
    assert served.machine["served_model"] == "mixed"
    assert served.paired.other == "mixed" and served.paired.overall.p_value == 1
    assert served.prompts_sha256 == scores[0].prompts_sha256


def endpoint_of(endpoint, name):
    endpoint.name = name
    return endpoint


def test_draws_on_a_server_are_the_same_twice(endpoint):
    questions = ask(SETTINGS.suite, Asked(problems=1))
    how = Sampling(max_new_tokens=8, temperature=1.0, samples=2)
    first, again = (endpoint.answer(questions, how, 4) for _ in range(2))
    assert [one.generated for one in first] == [one.generated for one in again]
    assert first[0].generated != first[1].generated


def test_any_text_is_continued_alike_up_to_its_stop(endpoint, inside):
    text = "<bos> <user> add : 1 2 + 3 4 ?"
    how = Sampling(max_new_tokens=10)
    whole = continue_texts(inside, [text], (), how)[0]
    assert continue_texts(endpoint, [text], (), how) == [whole]
    stop = whole.split()[3]
    cut = whole[: whole.index(stop)]
    for subject in (inside, endpoint):
        assert continue_texts(subject, [text], (stop,), how)[0].strip() == cut.strip()


def test_given_text_is_as_likely_on_a_server(endpoint, inside):
    with torch.no_grad():
        best = int(inside.network(torch.tensor([[1, 5, 9]])).logits[0, -1].argmax())
    pairs = [([1, 5, 9], [20, 21]), ([1, 7], [30]), ([1, 5, 9], [best])]
    there, here = score_pairs(endpoint, pairs, 2), score_pairs(inside, pairs, 2)
    for (first, likeliest), (second, expected) in zip(there, here, strict=True):
        assert first == pytest.approx(second, abs=1e-5)
        assert likeliest == expected
    assert there[2][1]


def test_a_server_that_tells_no_likelihood_says_so(endpoint, monkeypatch):
    monkeypatch.setattr(endpoint, "score", lambda *_: None)
    with pytest.raises(MachineError, match="does not tell the likelihood"):
        score_pairs(endpoint, [([1, 5], [7])], 1)


def test_the_command_asks_a_server(client, folder, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from hybridize.cli.app import app

    monkeypatch.chdir(tmp_path)
    asked = ["eval", "--endpoint", client.url, "--suite", SETTINGS.suite, "--limit", "2"]
    asked += ["--max-new-tokens", "4", "--out", "scores"]
    done = CliRunner().invoke(app, [*asked, "--tokenizer", str(folder), "--model-name", "mixed"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "scores" / "mixed.json").read_text())["seed"] == 2
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == RecipeError.exit_code and "--tokenizer" in done.output
