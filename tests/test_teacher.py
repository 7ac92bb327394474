"""The shipped teacher: whole, small, and as good as its card says."""

import hashlib
import json

import pytest

from hybridize import tasks
from hybridize.core.shape import SHIPPED_TEACHER
from hybridize.evaluation.answers import answer, problems
from hybridize.evaluation.scores import score
from hybridize.models.model import load
from hybridize.tasks.kinds import KINDS


@pytest.fixture(scope="module")
def teacher():
    return load("shipped")


def test_weights_are_the_ones_that_were_trained():
    weights = (SHIPPED_TEACHER / "model.safetensors").read_bytes()
    noted = (SHIPPED_TEACHER / "model.safetensors.sha256").read_text().strip()
    assert hashlib.sha256(weights).hexdigest() == noted


def test_folder_is_a_small_llama():
    config = json.loads((SHIPPED_TEACHER / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert 10 <= config["num_hidden_layers"] <= 16
    assert sum(path.stat().st_size for path in SHIPPED_TEACHER.iterdir()) <= 10_000_000


def test_chat_template_renders_the_prompt_of_a_problem(teacher):
    problem = tasks.make("chain", seed=0, index=0)
    messages = [{"role": "user", "content": problem.prompt}]
    text = teacher.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert text == problem.prompt_text


def test_tokenizer_keeps_every_word(teacher):
    for kind in KINDS:
        problem = tasks.make(kind, seed=0, index=1)
        text = f"{problem.prompt_text} {problem.completion_text}"
        ids = teacher.tokenizer(text).input_ids
        assert len(ids) == len(text.split())
        assert teacher.tokenizer.decode(ids) == text


def test_answers_are_right_on_held_out_problems(teacher):
    asked = problems(list(KINDS), num_per_kind=16, seed=77)
    answers = answer(teacher.network, teacher.tokenizer, asked, max_new_tokens=192, batch=80)
    kinds, overall = score(answers)
    assert overall.accuracy >= 0.92, {kind: one.accuracy for kind, one in kinds.items()}
