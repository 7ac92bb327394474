"""One token of Mamba-2: the compiled form, its definition, and the operators over many tokens.

Legend: B batch, T tokens, I projected values, H heads, E channels, G groups.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridize.ops import causal_conv, forms, gated_norm, mamba2_step, ssd
from tests.close import assert_close

CPU = torch.device("cpu")
FORMS = [
    name
    for name, form in forms.list_operators()["mamba2_step"].items()
    if form.find_obstacle(CPU) is None
]
SIZES = {
    "small": (4, 8, 2, 8, 4),
    "a head for each group": (3, 16, 3, 16, 4),
    "odd widths": (6, 5, 2, 7, 3),
    "wide state": (2, 20, 1, 33, 2),
    "one tap": (2, 4, 2, 4, 1),
    "enough for threads": (32, 32, 8, 40, 4),
}
"""Heads, channels per head, groups, state size, taps."""


def draw(
    sizes: tuple[int, ...], num_rows: int, num_tokens: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
    """Return projected values (B, T, I), the parameters, and options with both states."""
    num_heads, channels, num_groups, num_states, taps = sizes
    inner = num_heads * channels
    convolved = inner + 2 * num_groups * num_states
    torch.manual_seed(0)
    projected_BTI = torch.randn(num_rows, num_tokens, inner + convolved + num_heads, dtype=dtype)
    parameters = [torch.randn(convolved, taps), torch.randn(convolved)]
    parameters += [*torch.randn(3, num_heads).unbind(), torch.randn(inner)]
    states = {
        "conv_state_BXW": torch.randn(num_rows, convolved, taps - 1, dtype=dtype),
        "ssd_state_BHPN": torch.randn(num_rows, num_heads, channels, num_states).to(
            torch.promote_types(dtype, torch.float32)
        ),
    }
    options = {"num_groups": num_groups, "eps": 1e-5} | states
    return projected_BTI, [p.to(dtype) for p in parameters], options


def copy(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in options.items()}


def mix_many(projected_BTI: Tensor, parameters: list[Tensor], options: dict[str, Any]) -> Any:
    """Compute what a mixer computes, with the operators over many tokens."""
    weight_XK, bias_X, dt_bias_H, A_log_H, D_H, norm_E = parameters
    num_heads, inner, num_groups = len(dt_bias_H), len(norm_E), options["num_groups"]
    sizes = [inner, len(weight_XK), num_heads]
    z_BTE, xBC_BTX, dt_BTH = projected_BTI.split(sizes, dim=-1)
    xBC_BTX, conv_state = causal_conv(
        xBC_BTX, weight_XK, bias_X, state_BDW=options["conv_state_BXW"]
    )
    bc = (len(weight_XK) - inner) // 2
    x_BTE, B_BTS, C_BTS = F.silu(xBC_BTX).split([inner, bc, bc], dim=-1)
    y_BTHP, ssd_state = ssd(
        x_BTE.unflatten(-1, (num_heads, -1)),
        F.softplus(dt_BTH + dt_bias_H),
        -A_log_H.exp(),
        B_BTS.unflatten(-1, (num_groups, -1)),
        C_BTS.unflatten(-1, (num_groups, -1)),
        D_H,
        state_BHPN=options["ssd_state_BHPN"],
    )
    y_BTE = gated_norm(y_BTHP.flatten(2), z_BTE, norm_E, num_groups=num_groups, eps=1e-5)
    return y_BTE, conv_state, ssd_state


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("num_rows", [1, 3, 8])
def test_steps_equal_many_tokens(form: str, sizes: tuple[int, ...], num_rows: int) -> None:
    for dtype, allowed in ((torch.float64, 1e-12), (torch.float32, 5e-6)):
        projected_BTI, parameters, options = draw(sizes, num_rows, 5, dtype)
        wanted = mix_many(projected_BTI, parameters, copy(options))
        outputs = []
        for t in range(5):
            y_BE, conv_state, ssd_state = mamba2_step(
                projected_BTI[:, t], *parameters, **options, form=form
            )
            options |= {"conv_state_BXW": conv_state, "ssd_state_BHPN": ssd_state}
            outputs.append(y_BE)
        found = (torch.stack(outputs, dim=1), conv_state, ssd_state)
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == other.dtype
            assert_close(one, other, allowed)


@pytest.mark.parametrize("form", FORMS)
def test_without_states_they_are_zeros(form: str) -> None:
    projected_BTI, parameters, options = draw(SIZES["small"], 2)
    sizes = {"num_groups": options["num_groups"], "eps": options["eps"]}
    zeros = {k: torch.zeros_like(v) for k, v in options.items() if k not in sizes}
    found = mamba2_step(projected_BTI[:, 0], *parameters, **sizes, form=form)
    wanted = mamba2_step(projected_BTI[:, 0], *parameters, **sizes, **zeros, form="reference")
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, 5e-6)


@pytest.mark.parametrize("form", FORMS)
def test_padding_leaves_the_states_of_its_rows(form: str) -> None:
    projected_BTI, parameters, options = draw(SIZES["small"], 3)
    segments_B = torch.tensor([1, 0, 4])
    plain = mamba2_step(projected_BTI[:, 0], *parameters, **copy(options), form=form)
    found = mamba2_step(
        projected_BTI[:, 0], *parameters, **copy(options), segments_B=segments_B, form=form
    )
    assert found[0].isfinite().all()
    for one, other in zip(found, plain, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])
    assert torch.equal(found[1][1], options["conv_state_BXW"][1])
    assert torch.equal(found[2][1], options["ssd_state_BHPN"][1])


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_close_to_float32(form: str) -> None:
    projected_BTI, parameters, options = draw(SIZES["small"], 2, dtype=torch.bfloat16)
    wide = {k: v.float() if isinstance(v, Tensor) else v for k, v in copy(options).items()}
    wanted = mamba2_step(projected_BTI[:, 0].float(), *(p.float() for p in parameters), **wide)
    found = mamba2_step(projected_BTI[:, 0], *parameters, **options, form=form)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for one, other in zip(found, wanted, strict=True):
        assert_close(one.float(), other, 0.02)


@pytest.mark.skipif("compiled" not in FORMS, reason="kernels cannot be built here")
class TestWriting:
    """The compiled form writes over states only where they are nobody else's."""

    def test_fitting_states_are_written_over(self) -> None:
        projected_BTI, parameters, options = draw(SIZES["small"], 2)
        before = copy(options)
        _, *states = mamba2_step(projected_BTI[:, 0], *parameters, **options, form="compiled")
        for name, state in zip(("conv_state_BXW", "ssd_state_BHPN"), states, strict=True):
            assert state.data_ptr() == options[name].data_ptr()
            assert not torch.equal(state, before[name])

    @pytest.mark.parametrize("kind", ["in a graph", "expanded", "transposed"])
    def test_other_states_stay_as_they_were(self, kind: str) -> None:
        projected_BTI, parameters, options = draw(SIZES["small"], 2)
        for name in ("conv_state_BXW", "ssd_state_BHPN"):
            state = options[name]
            if kind == "in a graph":
                options[name] = state.requires_grad_() * 1
            elif kind == "expanded":
                options[name] = state[:1].expand_as(state)
            else:
                options[name] = state.transpose(1, 2).contiguous().transpose(1, 2)
        kept, before = dict(options), copy(options)
        found = mamba2_step(projected_BTI[:, 0], *parameters, **options, form="compiled")
        wanted = mamba2_step(projected_BTI[:, 0], *parameters, **before, form="reference")
        for name in ("conv_state_BXW", "ssd_state_BHPN"):
            assert torch.equal(kept[name], before[name])
        for one, other in zip(found, wanted, strict=True):
            assert not one.requires_grad
            assert_close(one, other, 5e-6)

    def test_threads_change_nothing(self) -> None:
        projected_BTI, parameters, options = draw(SIZES["enough for threads"], 3)
        threads, found = torch.get_num_threads(), []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                found.append(mamba2_step(projected_BTI[:, 0], *parameters, **copy(options)))
        finally:
            torch.set_num_threads(threads)
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)


def test_no_gradient_passes() -> None:
    projected_BTI, parameters, options = draw(SIZES["small"], 2)
    projected_BTI.requires_grad_()
    for form in FORMS:
        y_BE, *_ = mamba2_step(projected_BTI[:, 0], *parameters, **copy(options), form=form)
        assert not y_BE.requires_grad


def test_what_is_not_a_number_stays_so() -> None:
    projected_BTI, parameters, options = draw(SIZES["a head for each group"], 1)
    projected_BTI[..., -1] = torch.nan
    y_BE, *_ = mamba2_step(projected_BTI[:, 0], *parameters, **options)
    assert y_BE[0, :32].isfinite().all() and y_BE[0, 32:].isnan().all()
