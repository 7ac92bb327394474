"""Importance finds the layer that was planted as useless, and goes on where it was stopped."""

import json
from dataclasses import replace

import pytest
import torch

from hybridize.core.artifacts import read_jsonl
from hybridize.evaluation.answers import Answer
from hybridize.models.model import Model
from hybridize.stages import importance
from hybridize.stages.importance import (
    LeaveOneOutSettings,
    ReplaceOneSettings,
    leave_one_out,
    replace_one,
)
from hybridize.training.optim import OptimizerSettings
from hybridize.training.settings import FitSettings
from tests.tiny import as_student, tiny_teacher
from tests.tiny_tasks import task_rows, task_student, task_teacher

PLANTED = 2
TOKENS = 512
TRAINING = FitSettings(
    tokens=3 * 256, tokens_per_step=256, optimizer=OptimizerSettings(name="adamw", lr=1e-3)
)


@pytest.fixture(scope="module")
def teacher():
    """A teacher whose attention writes nothing in one layer."""
    model = task_teacher()
    with torch.no_grad():
        model.network.model.layers[PLANTED].self_attn.o_proj.weight.zero_()
    return model


@pytest.fixture(scope="module")
def heldout():
    return task_rows("heldout")


def silence_mlp(model):
    network = as_student(tiny_teacher(vocab=model.network.config.vocab_size))
    network.load_state_dict(model.network.state_dict())
    with torch.no_grad():
        network.model.layers[PLANTED].mlp.down_proj.weight.zero_()
    return Model("teacher", network, model.tokenizer)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def assert_unchanged(model, before):
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def assert_planted_is_least(found):
    assert found.least(1) == (PLANTED,)
    least, second = (entry.score for entry in found.ranked()[:2])
    assert least == pytest.approx(0, abs=1e-6)
    assert second > 1e-3


@pytest.mark.parametrize("scope", ["attention", "layer"])
def test_leave_one_out_ranks_a_useless_layer_least(teacher, heldout, scope):
    model = teacher if scope == "attention" else silence_mlp(teacher)
    before = state_of(model)
    settings = LeaveOneOutSettings(metric="kl", scope=scope, tokens=TOKENS)
    found = leave_one_out(model, heldout, settings)
    assert (found.method, found.metric, found.scope) == ("leave_one_out", "kl", scope)
    assert [entry.layer for entry in found.scores] == [0, 1, 2, 3]
    assert {entry.tokens for entry in found.scores} == {TOKENS}
    assert_planted_is_least(found)
    assert_unchanged(model, before)
    assert all(layer.left_out is None for layer in model.network.model.layers)


def test_a_layer_without_attention_but_with_an_mlp_is_not_useless(teacher, heldout):
    found = leave_one_out(teacher, heldout, LeaveOneOutSettings(scope="layer", tokens=TOKENS))
    assert min(entry.score for entry in found.scores) > 1e-3


def test_leave_one_out_by_accuracy_counts_the_answers_lost(teacher, heldout, monkeypatch):
    """A random teacher answers nothing right, so agreement with itself stands for being right."""
    words_of = {}

    def agree(network, tokenizer, asked, **_):
        inputs = tokenizer(
            [problem.prompt_text for problem in asked], padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            logits = network(inputs.input_ids, attention_mask=inputs.attention_mask).logits
        words = logits[:, -1].argmax(-1).tolist()
        wanted = words_of.setdefault("whole", words)
        return [
            Answer(
                kind=problem.kind, difficulty=1, right=word == other, finished=True, num_tokens=1,
                log_likelihood=0.0, prompt="", generated="", expected="",
            )
            for problem, word, other in zip(asked, words, wanted, strict=True)
        ]  # fmt: skip

    monkeypatch.setattr(importance, "answer", agree)
    settings = LeaveOneOutSettings(
        metric="accuracy", scope="attention", kinds=("sort", "add"), problems=20
    )
    found = leave_one_out(teacher, heldout, settings)
    assert found.metric == "accuracy"
    assert found.least(1) == (PLANTED,)
    for entry in found.scores:
        share = 1 - entry.score
        assert entry.standard_error == pytest.approx((share * (1 - share) / 40) ** 0.5)
        assert (entry.score == 0) == (entry.layer == PLANTED)


@pytest.mark.parametrize("steps", [0, 3])
def test_replace_one_ranks_a_useless_layer_least(teacher, heldout, steps):
    before = state_of(teacher)
    settings = ReplaceOneSettings(tokens=TOKENS, steps=steps, training=TRAINING)
    found = replace_one(teacher, teacher, task_rows(), heldout, settings)
    assert (found.method, found.mixer, found.steps) == ("replace_one", "mamba2", steps)
    assert_unchanged(teacher, before)
    assert found.least(1) == (PLANTED,)
    least, second = found.ranked()[:2]
    assert least.score_before == pytest.approx(0, abs=1e-6)
    assert least.score < second.score / 2
    for entry in found.scores:
        if steps == 0:
            assert entry.score == entry.score_before
        elif entry.layer != PLANTED:
            assert entry.score != entry.score_before
        assert entry.tokens == TOKENS + (TRAINING.tokens if steps else 0)
    assert found.rank_correlation() is not None


def test_replace_one_measures_only_the_layers_that_still_attend(teacher, heldout):
    student = task_student(teacher, "MAAM")
    settings = ReplaceOneSettings(tokens=TOKENS, steps=0)
    found = replace_one(student, teacher, task_rows(), heldout, settings)
    assert [entry.layer for entry in found.scores] == [1, 2]
    assert (found.model, found.layout) == ("student", "MAAM")


def test_a_stopped_measurement_goes_on_layer_by_layer(teacher, heldout, tmp_path, monkeypatch):
    settings = LeaveOneOutSettings(scope="attention", tokens=TOKENS)
    whole = leave_one_out(teacher, heldout, settings)
    measured = []
    real = importance.measure

    def count(*arguments, **options):
        measured.append(arguments)
        return real(*arguments, **options)

    def stop(done, total):
        assert total == 4
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(importance, "measure", count)
    out = tmp_path / "importance" / "leave_one_out"
    with pytest.raises(KeyboardInterrupt):
        leave_one_out(teacher, heldout, settings, out, progress=stop)
    file = out / "layers.jsonl"
    assert [line["layer"] for line in read_jsonl(file)] == [0, 1]
    with file.open("a") as half:
        half.write('{"layer": 2, "sco')
    assert len(measured) == 2
    found = leave_one_out(teacher, heldout, settings, out)
    assert len(measured) == 4, "what stood in the file is not measured again"
    assert [line["layer"] for line in map(json.loads, file.open())] == [0, 1, 2, 3]

    def timeless(result):
        return [replace(entry, seconds=0.0) for entry in result.scores]

    assert timeless(found) == timeless(whole)
