"""One token of Mamba with shared values: the compiled form, its definition, many tokens.

Legend: B batch, T tokens, I projected values, E channels, X shared channels, N state size.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridize.ops import causal_conv, forms, mamba1_step, selective_scan
from tests.close import assert_close

CPU = torch.device("cpu")
FORMS = [
    name
    for name, form in forms.list_operators()["mamba1_step"].items()
    if form.find_obstacle(CPU) is None
]
SIZES = {
    "heads repeated": (32, 16, 8, 4, 4),
    "groups repeated": (32, 16, 4, 4, 4),
    "not shared": (24, 24, 6, 3, 3),
    "odd widths": (60, 20, 10, 5, 2),
    "wide state": (66, 33, 33, 33, 1),
    "enough for threads": (1024, 256, 64, 32, 4),
}
"""Channels, shared channels, channels repeated as one, state size, taps."""
STATES = ("conv_state_BEW", "scan_state_BEN")
Drawn = tuple[Tensor, Tensor, list[Any], dict[str, Any]]


def draw(
    sizes: tuple[int, ...], num_rows: int, num_tokens: int, dtype: torch.dtype = torch.float32
) -> Drawn:
    """Return projected values (B, T, I), step sizes, parameters, and options with both states."""
    inner, shared, block, num_states, taps = sizes
    torch.manual_seed(0)
    projected_BTI = torch.randn(num_rows, num_tokens, 2 * (inner + shared))
    dt_BTE = torch.randn(num_rows, num_tokens, inner)
    parameters = [torch.randn(inner, taps), *torch.randn(2, inner).unbind()]
    parameters += [torch.randn(inner, num_states), torch.randn(inner)]
    wide = torch.promote_types(dtype, torch.float32)
    options = {
        "block": block,
        "conv_state_BEW": torch.randn(num_rows, inner, taps - 1).to(dtype),
        "scan_state_BEN": torch.randn(num_rows, inner, num_states).to(wide),
    }
    return projected_BTI.to(dtype), dt_BTE.to(dtype), [p.to(dtype) for p in parameters], options


def copy(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in options.items()}


def run(form: str, drawn: Drawn, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Take the first token, leaving what was drawn as it is."""
    projected_BTI, dt_BTE, parameters, options = drawn
    first = (projected_BTI[:, 0], dt_BTE[:, 0])
    return mamba1_step(*first, *parameters, **copy(options), **more, form=form)


def mix_many(drawn: Drawn, sizes: tuple[int, ...]) -> Any:
    """Compute what a mixer computes, with the operators over many tokens."""
    (projected_BTI, dt_BTE, parameters, options), (inner, shared, block, states, _) = drawn, sizes
    weight_EK, bias_E, dt_bias_E, A_log_EN, D_E = parameters
    z_BTE, x_BTX, B_BTX, C_BTE = projected_BTI.split([inner, shared, shared, inner], dim=-1)
    x_BTE, B_BTE = (
        part.unflatten(-1, (-1, block)).repeat_interleave(inner // shared, dim=2).flatten(2)
        for part in (x_BTX, B_BTX)
    )
    x_BTE, conv_state = causal_conv(x_BTE, weight_EK, bias_E, state_BDW=options["conv_state_BEW"])
    y_BTE, scan_state = selective_scan(
        F.silu(x_BTE),
        F.softplus(dt_BTE + dt_bias_E),
        -A_log_EN.exp(),
        B_BTE.unflatten(-1, (-1, states)),
        C_BTE.unflatten(-1, (-1, states)),
        D_E,
        state_BDN=options["scan_state_BEN"],
    )
    return y_BTE * F.silu(z_BTE), conv_state, scan_state


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("num_rows", [1, 3, 8])
def test_steps_equal_many_tokens(form: str, sizes: tuple[int, ...], num_rows: int) -> None:
    for dtype, allowed in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        drawn = draw(sizes, num_rows, 5, dtype)
        wanted = mix_many(drawn, sizes)
        projected_BTI, dt_BTE, parameters, options = drawn
        outputs = []
        for t in range(5):
            token = (projected_BTI[:, t], dt_BTE[:, t])
            y_BE, *states = mamba1_step(*token, *parameters, **options, form=form)
            options |= dict(zip(STATES, states, strict=True))
            outputs.append(y_BE)
        found = (torch.stack(outputs, dim=1), *states)
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == other.dtype
            assert_close(one, other, allowed)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_left_out_is_zeros(form: str) -> None:
    projected_BTI, dt_BTE, parameters, options = draw(SIZES["heads repeated"], 2, 1)
    parameters[1:3] = [torch.zeros_like(values) for values in parameters[1:3]]
    zeros = {k: torch.zeros_like(v) if k in STATES else v for k, v in options.items()}
    wanted = run("reference", (projected_BTI, dt_BTE, parameters, zeros))
    parameters = [parameters[0], None, None, *parameters[3:]]
    found = run(form, (projected_BTI, dt_BTE, parameters, {"block": options["block"]}))
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, 5e-6)


@pytest.mark.parametrize("form", FORMS)
def test_padding_leaves_the_states_of_its_rows(form: str) -> None:
    drawn = draw(SIZES["heads repeated"], 3, 1)
    plain, found = run(form, drawn), run(form, drawn, segments_B=torch.tensor([1, 0, 4]))
    assert found[0].isfinite().all()
    for one, other in zip(found, plain, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])
    for one, name in zip(found[1:], STATES, strict=True):
        assert torch.equal(one[1], drawn[3][name][1])


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_close_to_float32(form: str) -> None:
    narrow = draw(SIZES["heads repeated"], 2, 1, torch.bfloat16)
    projected_BTI, dt_BTE, parameters, options = narrow
    wide = {k: v.float() if isinstance(v, Tensor) else v for k, v in options.items()}
    made = (projected_BTI.float(), dt_BTE.float(), [p.float() for p in parameters], wide)
    found = run(form, narrow)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for one, other in zip(found, run("reference", made), strict=True):
        assert_close(one.float(), other, 0.03)


@pytest.mark.skipif("compiled" not in FORMS, reason="kernels cannot be built here")
def test_states_are_written_over_unless_they_are_in_a_graph() -> None:
    projected_BTI, dt_BTE, parameters, options = draw(SIZES["heads repeated"], 2, 1)
    first = (projected_BTI[:, 0], dt_BTE[:, 0])
    _, *states = mamba1_step(*first, *parameters, **options, form="compiled")
    for name, state in zip(STATES, states, strict=True):
        assert state.data_ptr() == options[name].data_ptr()
    options |= {name: options[name].requires_grad_() * 1 for name in STATES}
    before = copy(options)
    mamba1_step(*first, *parameters, **options, form="compiled")
    assert all(torch.equal(options[name], before[name]) for name in STATES)


@pytest.mark.skipif("compiled" not in FORMS, reason="kernels cannot be built here")
def test_threads_change_nothing() -> None:
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(run("compiled", draw(SIZES["enough for threads"], 3, 1)))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
