"""One token of Gated DeltaNet: the compiled form, its definition, and the operators over many.

Legend: B batch, T tokens, H heads, E channels, G groups.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridize.ops import causal_conv, forms, gated_delta_rule, gated_delta_step
from tests.close import assert_close

CPU = torch.device("cpu")
FORMS = [
    name
    for name, form in forms.list_operators()["gated_delta_step"].items()
    if form.find_obstacle(CPU) is None
]
SIZES = {
    "small": (4, 8, 2, 4),
    "a head for each group": (3, 16, 3, 4),
    "odd widths": (6, 7, 2, 3),
    "one tap": (2, 4, 1, 1),
    "enough for threads": (32, 36, 8, 2),
}
"""Heads, channels per head, groups, taps."""
STATES = ("conv_state_BXW", "delta_state_BHPN")


def draw(
    sizes: tuple[int, ...], num_rows: int, num_tokens: int, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor], dict[str, Any]]:
    """Return what is projected (B, T, .), the parameters, and options with both states."""
    num_heads, head_dim, num_groups, taps = sizes
    inner, convolved = num_heads * head_dim, (2 * num_groups + num_heads) * head_dim
    torch.manual_seed(0)
    widths = (convolved, inner, num_heads, num_heads)
    projected = [torch.randn(num_rows, num_tokens, width) for width in widths]
    parameters = [torch.randn(convolved, taps), torch.randn(convolved)]
    parameters += [*torch.randn(2, num_heads).unbind(), torch.randn(head_dim)]
    wide = torch.promote_types(dtype, torch.float32)
    options = {
        "eps": 1e-5,
        "length_eps": 1e-6,
        "conv_state_BXW": torch.randn(num_rows, convolved, taps - 1).to(dtype),
        "delta_state_BHPN": torch.randn(num_rows, num_heads, head_dim, head_dim).to(wide),
    }
    return [p.to(dtype) for p in projected], [p.to(dtype) for p in parameters], options


def copy(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in options.items()}


def run(
    form: str, drawn: tuple[list[Tensor], list[Tensor], dict[str, Any]], **more: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the first token."""
    projected, parameters, options = drawn
    first = [values[:, 0] for values in projected]
    return gated_delta_step(*first, *parameters, **options, **more, form=form)


def mix_many(projected: list[Tensor], parameters: list[Tensor], options: dict[str, Any]) -> Any:
    """Compute what a mixer computes, with the operators over many tokens."""
    qkv_BTX, z_BTE, b_BTH, a_BTH = projected
    weight_XK, bias_X, dt_bias_H, A_log_H, norm_P = parameters
    inner, head_dim = z_BTE.shape[-1], len(norm_P)
    keys = (qkv_BTX.shape[-1] - inner) // 2
    qkv_BTX, conv_state = causal_conv(
        qkv_BTX, weight_XK, bias_X, state_BDW=options["conv_state_BXW"]
    )
    q, k, v = (
        part.unflatten(-1, (-1, head_dim))
        for part in F.silu(qkv_BTX).split([keys, keys, inner], dim=-1)
    )
    y_BTHP, state = gated_delta_rule(
        q * torch.rsqrt(q.square().sum(-1, keepdim=True) + 1e-6) * head_dim**-0.5,
        k * torch.rsqrt(k.square().sum(-1, keepdim=True) + 1e-6),
        v,
        -A_log_H.exp() * F.softplus(a_BTH + dt_bias_H),
        b_BTH.sigmoid(),
        state_BHPN=options["delta_state_BHPN"],
    )
    y_BTHP = y_BTHP * torch.rsqrt(y_BTHP.square().mean(-1, keepdim=True) + 1e-5) * norm_P
    return y_BTHP.flatten(2) * F.silu(z_BTE), conv_state, state


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("num_rows", [1, 3, 8])
def test_steps_equal_many_tokens(form: str, sizes: tuple[int, ...], num_rows: int) -> None:
    for dtype, allowed in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        projected, parameters, options = draw(sizes, num_rows, 5, dtype)
        wanted = mix_many(projected, parameters, copy(options))
        outputs = []
        for t in range(5):
            token = [values[:, t] for values in projected]
            y_BE, *states = gated_delta_step(*token, *parameters, **options, form=form)
            options |= dict(zip(STATES, states, strict=True))
            outputs.append(y_BE)
        found = (torch.stack(outputs, dim=1), *states)
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == other.dtype
            assert_close(one, other, allowed)


@pytest.mark.parametrize("form", FORMS)
def test_without_states_and_bias_they_are_zeros(form: str) -> None:
    projected, parameters, options = draw(SIZES["small"], 2, 1)
    parameters[1] = torch.zeros_like(parameters[1])
    zeros = {k: torch.zeros_like(v) if k in STATES else v for k, v in options.items()}
    wanted = run("reference", (projected, parameters, zeros))
    sizes = {k: v for k, v in options.items() if k not in STATES}
    without_bias: list[Any] = [parameters[0], None, *parameters[2:]]
    for one, other in zip(run(form, (projected, without_bias, sizes)), wanted, strict=True):
        assert_close(one, other, 5e-6)


@pytest.mark.parametrize("form", FORMS)
def test_padding_leaves_the_states_of_its_rows(form: str) -> None:
    projected, parameters, options = draw(SIZES["small"], 3, 1)
    plain = run(form, (projected, parameters, copy(options)))
    found = run(form, (projected, parameters, copy(options)), segments_B=torch.tensor([1, 0, 4]))
    assert found[0].isfinite().all()
    for one, other in zip(found, plain, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])
    for one, name in zip(found[1:], STATES, strict=True):
        assert torch.equal(one[1], options[name][1])


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_close_to_float32(form: str) -> None:
    projected, parameters, options = draw(SIZES["small"], 2, 1, torch.bfloat16)
    wide = {k: v.float() if isinstance(v, Tensor) else v for k, v in copy(options).items()}
    wanted = run(
        "reference", ([p.float() for p in projected], [p.float() for p in parameters], wide)
    )
    found = run(form, (projected, parameters, options))
    assert [tensor.dtype for tensor in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for one, other in zip(found, wanted, strict=True):
        assert_close(one.float(), other, 0.03)


@pytest.mark.skipif("compiled" not in FORMS, reason="kernels cannot be built here")
def test_states_are_written_over_unless_they_are_in_a_graph() -> None:
    drawn = draw(SIZES["small"], 2, 1)
    for name, state in zip(STATES, run("compiled", drawn)[1:], strict=True):
        assert state.data_ptr() == drawn[2][name].data_ptr()
    states = {name: drawn[2][name].requires_grad_() * 1 for name in STATES}
    before = copy(states)
    run("compiled", (*drawn[:2], drawn[2] | states))
    assert all(torch.equal(states[name], before[name]) for name in STATES)


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
