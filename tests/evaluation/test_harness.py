"""The harness gets from a model what a direct computation gives, and its tasks are our problems."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from hybridize import tasks
from hybridize.core.benchmarks import APRIEL_H1, describe_missing, expand, find_benchmark
from hybridize.evaluation.endpoint import Endpoint
from hybridize.evaluation.harness import _read_settings, _windows, list_own_tasks
from hybridize.evaluation.harness_problems import judge_boxed
from hybridize.evaluation.sampling import Sampling
from hybridize.evaluation.subjects import InProcess
from hybridize.evaluation.texts import continue_texts, cut, encode_pair, score_pairs
from tests.tiny_tasks import task_student, task_teacher


@pytest.fixture(scope="module")
def subject():
    return InProcess.of(task_student(task_teacher(layers=2), "AM"))


def test_continuations_score_as_computed_directly(subject):
    texts = [("<bos> add : 1 2", " + 3 4"), ("sort : a", " b c d"), ("", "<bos> add")]
    pairs = [encode_pair(subject.tokenizer, *text) for text in texts]
    assert pairs[2][0] == [subject.tokenizer.bos_token_id]
    found = score_pairs(subject, pairs, 2)
    for (first, then), (value, likeliest) in zip(pairs, found, strict=True):
        with torch.no_grad():
            logs = subject.network(torch.tensor([first + then])).logits[0].log_softmax(-1)
        places = range(len(first) - 1, len(first) + len(then) - 1)
        taken = [logs[place, token].item() for place, token in zip(places, then, strict=True)]
        assert value == pytest.approx(sum(taken), abs=1e-4)
        tops = [logs[place].argmax().item() for place in places]
        assert likeliest == (tops == then)


def test_the_likeliest_continuation_is_what_is_generated(subject):
    text = "<bos> <user> add : 1 2 + 3 4 ?"
    made = continue_texts(subject, [text], (), Sampling(max_new_tokens=5))[0]
    assert score_pairs(subject, [encode_pair(subject.tokenizer, text, f" {made}")], 1)[0][1]
    stop = made.split()[2]
    stopped = continue_texts(subject, [text, "<bos> sort :"], (stop,), Sampling(max_new_tokens=5))
    assert stopped[0] == cut(made, [stop])


def test_windows_score_each_token_once(subject):
    text = " ".join(["add : 1 + 2 ? sort : a b"] * 3)
    ids = subject.tokenizer(text).input_ids
    short = SimpleNamespace(
        tokenizer=subject.tokenizer,
        network=SimpleNamespace(config=SimpleNamespace(max_position_embeddings=9)),
    )
    pairs = _windows(short, text)
    assert [token for _, then in pairs for token in then] == ids
    assert all(first and len(first) + len(then) <= 9 for first, then in pairs)
    assert len(_windows(subject, text)) == 1


def test_a_request_says_how_it_is_answered():
    how, stops = _read_settings(
        {"until": ["Q:", ""], "max_gen_toks": 7, "do_sample": True, "temperature": 0.6},
        Sampling(seed=3),
    )
    assert (how.max_new_tokens, how.temperature, how.seed, stops) == (7, 0.6, 3, ("Q:",))
    how, stops = _read_settings({"until": "x", "temperature": 0.0}, Sampling(max_new_tokens=9))
    assert (how.max_new_tokens, how.temperature, stops) == (9, 0.0, ("x",))


def test_the_preset_names_the_nine_benchmarks_of_the_paper():
    assert [entry.name for entry in APRIEL_H1] == [
        *("MATH500", "GSM8K", "IFEval", "MBPP", "GPQA-Diamond", "AIME24", "AIME25", "AMC23"),
        "MT-Bench",
    ]
    assert len(expand(("apriel-h1", "gsm8k", "arc_easy"))) == 9
    assert "MT-Bench has no task" in describe_missing(("apriel-h1",))[0]
    assert find_benchmark("gsm8k").download == "hf download openai/gsm8k --repo-type dataset"
    assert describe_missing(("gsm8k",)) == [] and find_benchmark("arc_easy") is None


@pytest.mark.parametrize(
    ("said", "right"),
    [("so \\boxed{1,200}", 1.0), ("\\boxed{3} then 1200", 0.0), ("it is 1200.0", 1.0), ("?", 0.0)],
)
def test_a_boxed_number_counts(said, right):
    assert judge_boxed({"answer": "1200"}, [said]) == {"exact_match": right}


def test_our_tasks_are_listed():
    assert list_own_tasks() == ["hybridize_" + name for name in sorted([*tasks.KINDS, "amc23"])]


class Echo:
    """A client of a server that echoes prompts with the logprobs of a model, as vLLM does."""

    def __init__(self, subject):
        self.subject = subject
        self.model = "echo"

    def complete(self, prompt, draw):
        network = self.subject.network
        with torch.no_grad():
            logs = network(torch.tensor([prompt])).logits[0].log_softmax(-1)
        told = [0.0, *(logs[place, token].item() for place, token in enumerate(prompt[1:]))]
        tops = [{}, *({"likeliest": row.max().item()} for row in logs[:-1])]
        return SimpleNamespace(logprobs=(*told, -1.0), top_logprobs=(*tops, {"likeliest": -0.5}))


def test_a_server_that_echoes_tells_the_same_likelihood(subject, monkeypatch):
    monkeypatch.setattr("hybridize.evaluation.endpoint.Client", lambda *_, **__: Echo(subject))
    endpoint = Endpoint("http://localhost:1", subject.tokenizer, model="echo")
    with torch.no_grad():
        best = int(subject.network(torch.tensor([[1, 5]])).logits[0, -1].argmax())
    pairs = [([1, 5, 9], [20, 21]), ([1, 7], [30]), ([1, 5], [best])]
    there, here = score_pairs(endpoint, pairs, 2), score_pairs(subject, pairs, 2)
    for (first, likeliest), (second, expected) in zip(there, here, strict=True):
        assert first == pytest.approx(second, abs=1e-4)
        assert likeliest == expected


@pytest.mark.slow
def test_the_harness_scores_our_tasks(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from hybridize.core.errors import MachineError, RecipeError
    from hybridize.models.model import load
    from hybridize.stages.harness import HarnessSettings, run_all

    shipped = InProcess.of(load("shipped"))
    settings = HarnessSettings(tasks=("hybridize_add", "hybridize_sort"), limit=5)
    for name in ("one", "two"):
        found = run_all([shipped], settings, tmp_path / name)
    scores = {one.task: one for one in found[0].scores}
    assert scores["hybridize_add"].value == scores["hybridize_sort"].value == 1.0
    files = [tmp_path / name / "teacher.json" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    written = json.loads(files[0].read_text())
    assert written["versions"]["lm_eval"] and math.isfinite(written["settings"]["seed"])
    with pytest.raises(RecipeError, match="has no task nothing"):
        run_all([shipped], HarnessSettings(tasks=("nothing",)))
    with pytest.raises(MachineError, match="hf download openai/gsm8k --repo-type dataset"):
        run_all([shipped], HarnessSettings(tasks=("gsm8k",), limit=1))
