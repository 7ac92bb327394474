"""Verification finds what is wrong, and nothing that is wrong gets its name."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from hybridize.core.errors import ModelError
from hybridize.exports import stock
from hybridize.exports.expected import make_expected, round_weights
from hybridize.exports.prompts import make_prompts
from hybridize.exports.verify import Check, count_same, find_deviation, require, verify_folder
from hybridize.stages.export import FORMATS, ExportSettings, run
from tests.exports.students import make_student

PROMPTS = [[5], [7, 8, 9], [*range(3, 40)]]


def write_wrongly(model, folder, dtype):
    """Write a student as a careless writer would, with one matrix out of scale."""
    network = deepcopy(model.network)
    with torch.no_grad():
        network.model.layers[0].mlp.gate_proj.weight.mul_(1.1)
    stock.write(replace(model, network=network), folder, dtype)


@pytest.fixture(scope="module")
def expected():
    return make_expected(make_student().network, PROMPTS, new_tokens=8)


def test_what_is_expected_agrees_with_itself(expected):
    assert [len(logits) for logits in expected.logits] == [1, 3, 37]
    for made, logprobs, leads in zip(
        expected.continuations, expected.logprobs, expected.leads, strict=True
    ):
        assert len(made) == len(logprobs) == len(leads) == 8
        # Each token is the best of its place; its first is the best after the prompt.
        assert min(leads) > -1e-5 and max(logprobs) < 0
    firsts = [int(logits[-1].argmax()) for logits in expected.logits]
    assert firsts == [made[0] for made in expected.continuations]
    assert count_same(expected, expected.continuations, 1e-4) == (3, 0)


def test_another_process_without_our_package_answers_the_same(tmp_path):
    model = make_student()
    expected = make_expected(model.network, PROMPTS)
    stock.write(model, tmp_path, None)
    check = verify_folder(tmp_path, expected, import_hybridize=False)
    assert check.passed and check.without_hybridize and check.deviation < 1e-4
    assert check.class_name == "GraniteMoeHybridForCausalLM" and check.same == 3
    assert check.prompt_tokens == (1, 3, 37) and check.new_tokens == 64
    require(check, "h2")


def test_a_writer_that_errs_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "stock", "tests.exports.test_verify:write_wrongly")
    with pytest.raises(ModelError, match="model h2 answers otherwise once exported") as caught:
        run(make_student(), ExportSettings(), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_transformers_cannot_read_is_an_error(tmp_path, expected):
    (tmp_path / "config.json").write_text('{"model_type": "hybridize"}')
    with pytest.raises(ModelError, match="cannot run the exported folder"):
        verify_folder(tmp_path, expected, import_hybridize=False)


def test_a_tie_is_told_from_an_error(expected):
    made = [list(row) for row in expected.continuations]
    made[0][3] = 0 if made[0][3] else 1
    assert count_same(expected, made, 1e-4) == (2, 0)
    leads = tuple(tuple(0.0 for _ in row) for row in expected.leads)
    assert count_same(replace(expected, leads=leads), made, 1e-4) == (2, 1)
    assert count_same(expected, [row[:2] for row in made], 1e-4) == (0, 0)


def test_a_number_that_is_none_never_passes(expected):
    found = [logits.clone() for logits in expected.logits]
    assert find_deviation(expected.logits, found) == 0
    found[1][0, 0] = float("nan")
    assert find_deviation(expected.logits, found) == float("inf")
    assert find_deviation(expected.logits, found[:2]) == float("inf")


def test_rounded_weights_may_part_but_not_far():
    check = Check(
        **{"reader": "llama.cpp", "versions": {}, "class_name": None, "without_hybridize": False},
        **{"deviation": 0.2, "allowed": 0.5, "tokens_compared": 9, "num_prompts": 3},
        **{"prompt_tokens": (1, 3, 37), "new_tokens": 8, "same": 1, "ties": 0, "is_rounded": True},
    )
    assert check.passed and not replace(check, deviation=0.6).passed
    assert not replace(check, is_rounded=False).passed


def test_rounding_leaves_the_model_as_it_is():
    network = make_student().network
    assert round_weights(network, None) is network
    rounded = round_weights(network, "bfloat16")
    weight = network.model.layers[0].mlp.up_proj.weight
    assert torch.equal(rounded.model.layers[0].mlp.up_proj.weight, weight.bfloat16().float())
    assert not torch.equal(rounded.model.layers[0].mlp.up_proj.weight, weight)
    assert torch.equal(rounded.model.layers[1].mixer.A_log, network.model.layers[1].mixer.A_log)


def test_without_a_tokenizer_prompts_are_drawn_and_fit():
    model = make_student(max_position_embeddings=128)
    prompts = make_prompts(model, ["a text"])
    assert prompts == make_prompts(model, [])
    assert {len(prompt) for prompt in prompts} == {1, 5, 17, 64}
    assert max(map(max, prompts)) < 64
