"""One token from a cache takes a path of its own on a CPU; nobody but the cache may notice.

Legend: B batch, T tokens.
"""

import copy
from collections.abc import Iterator

import pytest
import torch

from hybridize.models import HybridForCausalLM
from hybridize.ops import forms
from tests.close import assert_close
from tests.models.cases import CASES, make_model
from tests.tiny import tokens

STEPPED = ["mamba2", "mamba2-expand2", "gated_delta", "mamba1", "mamba1-published"]
EXACT = 1e-5


@pytest.fixture(autouse=True)
def no_preference() -> Iterator[None]:
    yield
    forms.prefer(None)


def make(case: str, dtype: torch.dtype = torch.float32) -> HybridForCausalLM:
    assert case in CASES
    return make_model(case, dtype=dtype).eval()


@pytest.mark.parametrize("case", STEPPED)
@pytest.mark.parametrize("form", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@torch.no_grad()
def test_steps_from_nothing_equal_one_pass(case: str, form: str, dtype: torch.dtype) -> None:
    """Also the first token, which finds no state."""
    forms.prefer(None if form == "auto" else form)
    model, ids = make(case, dtype), tokens(3, 12) % 16
    cache = model.make_cache()
    steps = [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(12)]
    allowed = {torch.float32: EXACT, torch.float64: 1e-12, torch.bfloat16: 0.03}[dtype]
    assert_close(torch.cat(steps, dim=1), model(ids).logits, allowed)


@pytest.mark.parametrize("case", STEPPED)
def test_with_gradients_the_many_token_path_runs_and_agrees(case: str) -> None:
    model, ids = make(case), tokens(2, 9) % 16
    found = []
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            cache = model.make_cache()
            model(ids[:, :8], past_key_values=cache)
            found.append(model(ids[:, 8:], past_key_values=cache).logits)
    assert found[0].requires_grad and not found[1].requires_grad
    assert_close(found[1], found[0].detach(), EXACT)


@pytest.mark.parametrize("case", STEPPED)
def test_a_step_leaves_the_graph_of_the_prompt_alone(case: str) -> None:
    model, ids = make(case), tokens(2, 9) % 16
    gradients = []
    for steps in (0, 1):
        cache = model.make_cache()
        logits = model(ids[:, :8], past_key_values=cache).logits
        loss = logits.square().mean() + sum(
            state.square().sum() for state in cache.get_state(0).values()
        )
        with torch.no_grad():
            for _ in range(steps):
                model(ids[:, 8:], past_key_values=cache)
        gradients.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    for one, other in zip(*gradients, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("case", STEPPED)
@torch.no_grad()
def test_copies_and_chosen_rows_of_a_cache_go_their_own_ways(case: str) -> None:
    model, ids = make(case), tokens(2, 12) % 16
    cache = model.make_cache()
    model(ids[:, :8], past_key_values=cache)
    other = copy.deepcopy(cache)
    for t in range(8, 12):
        last = model(ids[:, t : t + 1], past_key_values=cache).logits
    branched = [model(ids[:, t : t + 1], past_key_values=other).logits for t in range(8, 12)]
    assert torch.equal(branched[-1], last)

    chosen = copy.deepcopy(other)
    chosen.batch_select_indices(torch.tensor([0, 1]))
    before = {name: state.clone() for name, state in other.get_state(0).items()}
    model(ids[:, :1], past_key_values=chosen)
    assert all(torch.equal(other.get_state(0)[name], state) for name, state in before.items())
    repeated = copy.copy(other.get_state(0))
    other.batch_repeat_interleave(1)
    model(ids[:, :1], past_key_values=other)
    assert all(torch.equal(repeated[name], state) for name, state in before.items())
