"""The gated delta rule: each form against the token loop, transformers, and at its edges."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridize.ops import gated_delta_rule
from hybridize.ops.gated_delta_rule import FORMS
from tests.close import assert_close

CPU = torch.device("cpu")
HERE = [
    name for name in FORMS if "cpu" in FORMS[name].devices and not FORMS[name].find_obstacle(CPU)
]
"""The forms that can run on this CPU: without a compiler it has no compiled one."""
FAST = [name for name in HERE if name != "reference"]
ALLOWED = 1e-4
"""Relative, float32: the same sums in another order, over up to 257 tokens."""
LENGTHS = [1, 2, 63, 64, 65, 257]
Inputs = list[Tensor]


def draw(
    num_tokens: int,
    *,
    groups: int = 2,
    heads: int = 4,
    dtype: torch.dtype = torch.float32,
    decay: float = 0.3,
) -> tuple[Inputs, Tensor]:
    """Draw q, k, v, g, beta and a state, of two rows; 5 channels a key and 3 a value."""
    torch.manual_seed(num_tokens)
    q_BTGN, k_BTGN = torch.randn(2, 2, num_tokens, groups, 5, dtype=dtype).unbind()
    v_BTHP = torch.randn(2, num_tokens, heads, 3, dtype=dtype)
    g_BTH, beta_BTH = torch.rand(2, 2, num_tokens, heads, dtype=dtype).unbind()
    made = [q_BTGN, F.normalize(k_BTGN, dim=-1), v_BTHP, -decay * g_BTH, beta_BTH]
    return [tensor.detach().requires_grad_() for tensor in made], torch.randn(
        2, heads, 3, 5, dtype=dtype
    ).requires_grad_()


def draw_segments(kind: str, num_tokens: int) -> Tensor | None:
    """Draw documents in order with padding at the end, or in any order with padding anywhere."""
    if kind == "one":
        return None
    drawn_BT = torch.randint(0, 4, (2, num_tokens))
    return drawn_BT if kind == "gaps" else (4 - drawn_BT.sort(dim=1).values) % 4


def compare(form: str, made: Inputs, state: Tensor | None, segments: Tensor | None) -> None:
    """Compare outputs at real tokens, the last state and all gradients with the reference."""
    real_BT = torch.ones(made[2].shape[:2]) == 1 if segments is None else segments != 0
    wanted = [*made, *([] if state is None else [state])]
    results = []
    for name in (form, "reference"):
        y, last = gated_delta_rule(*made, segments_BT=segments, state_BHPN=state, form=name)
        loss = y[real_BT].sin().sum() + last.cos().sum()
        results.append([y[real_BT], last, *torch.autograd.grad(loss, wanted)])
    for found, right in zip(*results, strict=True):
        # A gradient that cancels out is noise in both: it is held against a norm of 0.1.
        assert_close(found, right, ALLOWED * max(1, 0.1 / (right.norm().item() + 1e-9)))


@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "continued"])
@pytest.mark.parametrize("kind", ["one", "packed", "gaps"])
@pytest.mark.parametrize("num_tokens", LENGTHS)
@pytest.mark.parametrize("form", FAST)
def test_a_form_equals_the_reference(
    form: str, num_tokens: int, kind: str, with_state: bool
) -> None:
    made, state = draw(num_tokens)
    compare(form, made, state if with_state else None, draw_segments(kind, num_tokens))


@settings(max_examples=12, deadline=None)
@given(
    num_tokens=st.integers(1, 150),
    groups=st.integers(1, 3),
    share=st.integers(1, 2),
    kind=st.sampled_from(["one", "packed", "gaps"]),
    form=st.sampled_from(FAST),
)
def test_any_length_and_any_heads(
    num_tokens: int, groups: int, share: int, kind: str, form: str
) -> None:
    made, state = draw(num_tokens, groups=groups, heads=groups * share)
    compare(form, made, state, draw_segments(kind, num_tokens))


@pytest.mark.parametrize("form", HERE)
def test_gradients_by_finite_differences(form: str) -> None:
    made, state = draw(4, groups=1, heads=2, dtype=torch.float64)
    segments_BT = torch.tensor([[0, 1, 2, 2], [1, 0, 1, 1]])
    real_BT = segments_BT != 0

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        y, last = gated_delta_rule(
            *tensors[:-1], segments_BT=segments_BT, state_BHPN=tensors[-1], form=form
        )
        return y[real_BT], last

    torch.autograd.gradcheck(run, (*made, state), fast_mode=True)


@pytest.mark.parametrize("form", HERE)
def test_packed_documents_equal_documents_alone(form: str) -> None:
    made, _ = draw(150)
    segments_BT = torch.tensor([[4] * 3 + [1] * 67 + [2] * 80, [7] * 149 + [9]])
    packed, last = gated_delta_rule(*made, segments_BT=segments_BT, form=form)
    for row, start, stop in ((0, 0, 3), (0, 3, 70), (0, 70, 150), (1, 0, 149), (1, 149, 150)):
        alone, alone_last = gated_delta_rule(
            *(tensor[row : row + 1, start:stop] for tensor in made), form=form
        )
        assert_close(packed[row : row + 1, start:stop], alone, 1e-5)
        if stop == 150:
            assert_close(last[row : row + 1], alone_last, 1e-5)


@pytest.mark.parametrize("form", HERE)
def test_a_row_in_pieces_equals_the_row_at_once(form: str) -> None:
    made, state = draw(150)
    whole, last = gated_delta_rule(*made, state_BHPN=state, form=form)
    pieces = []
    for start, stop in ((0, 70), (70, 71), (71, 150)):
        y, state = gated_delta_rule(
            *(tensor[:, start:stop] for tensor in made), state_BHPN=state, form=form
        )
        pieces.append(y)
    assert_close(torch.cat(pieces, dim=1), whole, 1e-5)
    assert_close(state, last, 1e-5)


@pytest.mark.parametrize("form", FAST)
def test_repeated_keys_written_whole_stay_exact(form: str) -> None:
    """The hardest case: one key, beta 1, no decay; each value must push out the one before."""
    made, _ = draw(130, decay=0.0)
    q, k, v, g, beta = (tensor.detach() for tensor in made)
    k = k[:, :1].expand_as(k)
    beta = torch.ones_like(beta)
    y, _ = gated_delta_rule(k, k, v, g, beta, form=form)
    assert_close(y, v, 1e-4)
    # In float64, because gradients of up to 100 cancel to nothing here.
    hard = [tensor.double().requires_grad_() for tensor in (q, k, v, g, beta)]
    compare(form, hard, None, None)


@pytest.mark.parametrize("form", FAST)
def test_strong_decay_forgets_without_overflow(form: str) -> None:
    made, state = draw(130, decay=20.0)
    compare(form, made, state, None)
    made, state = draw(130, decay=1e4)
    y, last = gated_delta_rule(*made, state_BHPN=state, form=form)
    grads = torch.autograd.grad(y.sum() + last.sum(), [*made, state])
    assert all(tensor.isfinite().all() for tensor in (y, last, *grads))


@pytest.mark.parametrize("form", FAST)
def test_padding_only_rows_are_finite_in_poisoned_memory(form: str) -> None:
    made, state = draw(70)
    segments_BT = torch.zeros(2, 70, dtype=torch.long)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # with NaN
    try:
        y, last = gated_delta_rule(*made, segments_BT=segments_BT, state_BHPN=state, form=form)
        grads = torch.autograd.grad(y.sum() + last.sum(), [*made, state])
        compare(form, made, state, draw_segments("gaps", 70))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close(last, state, 1e-6)
    assert all(tensor.isfinite().all() for tensor in (y, last, *grads))


@pytest.mark.parametrize("form", FAST)
def test_bfloat16_values_give_bfloat16_outputs_and_a_float32_state(form: str) -> None:
    made, _ = draw(65)
    y_whole, _ = gated_delta_rule(*made, form=form)
    y, last = gated_delta_rule(*(tensor.bfloat16() for tensor in made), form=form)
    assert y.dtype == torch.bfloat16 and last.dtype == torch.float32
    assert_close(y.float(), y_whole, 0.05)


def test_it_is_the_rule_of_transformers() -> None:
    from transformers.models.qwen3_5 import modeling_qwen3_5

    published = modeling_qwen3_5.torch_chunk_gated_delta_rule
    made, state = draw(130)
    y, last = gated_delta_rule(made[0] * 5**-0.5, *made[1:], state_BHPN=state)
    wanted, wanted_last = published(
        *made, initial_state=state.transpose(-1, -2), output_final_state=True
    )
    assert_close(y, wanted, ALLOWED)
    assert_close(last, wanted_last.transpose(-1, -2), ALLOWED)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
def test_the_kernel_builds() -> None:
    assert FORMS["compiled"].find_obstacle(CPU) is None


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="no form 'fastest'"):
        gated_delta_rule(*draw(2)[0], form="fastest")
