"""Every operator: the fast form against the token loop, in values, states and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hybridize.ops import causal_conv, selective_scan, ssd
from tests.close import assert_close

FLOAT64, FLOAT32 = 1e-9, 2e-4
"""Both forms do the same sums in another order, over up to 257 tokens."""
Inputs = list[Tensor]
Op = tuple[Callable[..., tuple[Tensor, Tensor]], Callable[[int, int], tuple[Inputs, Tensor]], str]


def conv_inputs(rows: int, num_tokens: int) -> tuple[Inputs, Tensor]:
    made = [torch.randn(rows, num_tokens, 6), torch.randn(6, 4), torch.randn(6)]
    return made, torch.randn(rows, 6, 3)


def scan_inputs(rows: int, num_tokens: int) -> tuple[Inputs, Tensor]:
    x_BTD, dt_BTD = torch.randn(rows, num_tokens, 6), torch.rand(rows, num_tokens, 6)
    B_BTGN, C_BTGN = torch.randn(2, rows, num_tokens, 3, 4).unbind()
    made = [x_BTD, dt_BTD, -torch.rand(6, 4), B_BTGN, C_BTGN, torch.randn(6)]
    return made, torch.randn(rows, 6, 4)


def ssd_inputs(rows: int, num_tokens: int) -> tuple[Inputs, Tensor]:
    x_BTHP, dt_BTH = torch.randn(rows, num_tokens, 4, 3), torch.rand(rows, num_tokens, 4)
    B_BTGN, C_BTGN = torch.randn(2, rows, num_tokens, 2, 5).unbind()
    made = [x_BTHP, dt_BTH, -torch.rand(4), B_BTGN, C_BTGN, torch.randn(4)]
    return made, torch.randn(rows, 4, 3, 5)


OPS: dict[str, Op] = {
    "causal_conv": (causal_conv, conv_inputs, "state_BDW"),
    "selective_scan": (selective_scan, scan_inputs, "state_BDN"),
    "ssd": (ssd, ssd_inputs, "state_BHPN"),
}


def draw_segments(kind: str, rows: int, num_tokens: int) -> Tensor | None:
    """Draw documents in order with padding at the end, or in any order with padding anywhere."""
    if kind == "one":
        return None
    drawn_BT = torch.randint(0, 4, (rows, num_tokens))
    return drawn_BT if kind == "gaps" else (4 - drawn_BT.sort(dim=1).values) % 4


def run_both(
    name: str, num_tokens: int, kind: str, with_state: bool, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """Return pairs (chunked, reference): outputs at real tokens, state, and all gradients."""
    torch.manual_seed(num_tokens)
    op, make_inputs, state_name = OPS[name]
    made, state = make_inputs(2, num_tokens)
    made = [tensor.to(dtype).requires_grad_() for tensor in made]
    state = state.to(dtype).requires_grad_()
    segments_BT = draw_segments(kind, 2, num_tokens)
    real_BT = torch.ones(2, num_tokens) == 1 if segments_BT is None else segments_BT != 0
    options = {"segments_BT": segments_BT} | ({state_name: state} if with_state else {})
    wanted = [*made, *([state] if with_state else [])]
    results = []
    for form in ("chunked", "reference"):
        y, last = op(*made, form=form, **options)
        loss = y[real_BT].sin().sum() + last.cos().sum()
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        results.append([y[real_BT], last, *(g for g in grads if g is not None)])
    return list(zip(*results, strict=True))


@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "continued"])
@pytest.mark.parametrize("kind", ["one", "packed", "gaps"])
@pytest.mark.parametrize("num_tokens", [1, 2, 5, 63, 64, 65, 257])
@pytest.mark.parametrize("name", list(OPS))
def test_chunked_equals_reference(name: str, num_tokens: int, kind: str, with_state: bool) -> None:
    for chunked, reference in run_both(name, num_tokens, kind, with_state, torch.float64):
        assert_close(chunked, reference, FLOAT64)


@pytest.mark.parametrize("name", list(OPS))
def test_chunked_equals_reference_in_float32(name: str) -> None:
    for chunked, reference in run_both(name, 130, "packed", True, torch.float32):
        assert_close(chunked, reference, FLOAT32)


@pytest.mark.parametrize("form", ["chunked", "reference"])
@pytest.mark.parametrize("name", list(OPS))
def test_a_row_in_pieces_equals_the_row_at_once(name: str, form: str) -> None:
    op, make_inputs, state_name = OPS[name]
    made, state = make_inputs(2, 20)
    per_token = [tensor.ndim > 2 and tensor.shape[:2] == (2, 20) for tensor in made]
    whole, last = op(*made, form=form, **{state_name: state})
    pieces = []
    for start, stop in ((0, 7), (7, 8), (8, 20)):
        piece = [
            tensor[:, start:stop] if cut else tensor
            for tensor, cut in zip(made, per_token, strict=True)
        ]
        y, state = op(*piece, form=form, **{state_name: state})
        pieces.append(y)
    assert_close(torch.cat(pieces, dim=1), whole, 1e-5)
    assert_close(state, last, 1e-5)


@pytest.mark.parametrize("name", list(OPS))
def test_padding_changes_no_state(name: str) -> None:
    op, make_inputs, state_name = OPS[name]
    made, state = make_inputs(2, 9)
    per_token = [tensor.ndim > 2 and tensor.shape[:2] == (2, 9) for tensor in made]
    segments_BT = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 0, 0]] * 2)
    real_T = segments_BT[0] != 0
    dense = [t[:, real_T] if cut else t for t, cut in zip(made, per_token, strict=True)]
    y_padded, last_padded = op(*made, segments_BT=segments_BT, **{state_name: state})
    y_dense, last_dense = op(*dense, **{state_name: state})
    assert_close(y_padded[:, real_T], y_dense, 1e-5)
    assert_close(last_padded, last_dense, 1e-5)


@pytest.mark.parametrize("name", list(OPS))
def test_padding_only_rows_are_finite(name: str) -> None:
    op, make_inputs, _ = OPS[name]
    made = [tensor.requires_grad_() for tensor in make_inputs(2, 70)[0]]
    segments_BT = torch.zeros(2, 70, dtype=torch.long)
    y, last = op(*made, segments_BT=segments_BT)
    grads = torch.autograd.grad(y.sum() + last.sum(), made, allow_unused=True)
    assert all(g.isfinite().all() for g in [y, last, *grads] if g is not None)


@pytest.mark.parametrize("name", list(OPS))
def test_an_unknown_form_is_refused(name: str) -> None:
    op, make_inputs, _ = OPS[name]
    with pytest.raises(ValueError, match="no form 'fastest'"):
        op(*make_inputs(1, 2)[0], form="fastest")


@pytest.mark.parametrize("name", list(OPS))
def test_bfloat16_inputs_give_bfloat16_outputs(name: str) -> None:
    op, make_inputs, _ = OPS[name]
    made, _ = make_inputs(2, 65)
    y_whole, _ = op(*made)
    y_half, state = op(made[0].bfloat16(), *made[1:])
    assert name == "causal_conv" or y_half.dtype == torch.bfloat16
    assert name == "causal_conv" or state.dtype == torch.float32
    assert_close(y_half.float(), y_whole, 0.1)
