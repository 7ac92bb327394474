"""A serving engine is asked everything at once, and held to what our own class answers."""

import pytest
import torch

from hybridize.exports.expected import make_expected
from hybridize.exports.verify import verify_engine, why_unchecked
from hybridize.tasks.words import VOCABULARY
from tests.exports.students import make_student

PROMPTS = [[5], [7, 8, 9], [*range(3, 40)]]


@pytest.mark.slow
def test_our_own_server_answers_as_the_model_it_was_given(tmp_path):
    model = make_student(vocab=len(VOCABULARY), eos_token_id=None)
    model.save(tmp_path / "m")
    assert why_unchecked("hybridize", tmp_path / "m") is None
    check = verify_engine("hybridize", tmp_path / "m", make_expected(model.network, PROMPTS))
    assert check.passed and check.same == 3 and check.tokens_compared == 3 * 64
    with torch.no_grad():
        model.network.model.layers[0].mlp.gate_proj.weight.mul_(1.1)
    check = verify_engine("hybridize", tmp_path / "m", make_expected(model.network, PROMPTS))
    assert not check.passed
