"""The gated norm: the compiled form against the definition, and both against a formula."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hybridize.ops import forms, gated_norm
from tests.close import assert_close

CPU = torch.device("cpu")
FORMS = [
    name
    for name, form in forms.list_operators()["gated_norm"].items()
    if form.find_obstacle(CPU) is None
]


def draw(num_rows, num_tokens, num_channels, dtype):
    """Return y, z (not side by side in memory, as a mixer has it) and the weight."""
    torch.manual_seed(0)
    y_BTE = torch.randn(num_rows, num_tokens, num_channels, dtype=dtype)
    z_BTE = torch.randn(num_rows, num_tokens, num_channels + 3, dtype=dtype)[..., :num_channels]
    return y_BTE, z_BTE, torch.randn(num_channels, dtype=dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_groups", [1, 2, 5])
@pytest.mark.parametrize("num_channels", [10, 40, 80])
@pytest.mark.parametrize("num_tokens", [1, 5, 300])
def test_forms_equal_the_definition(form, num_groups, num_channels, num_tokens):
    for dtype, allowed in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        results = []
        for name in (form, "reference"):
            leaves = [
                tensor.requires_grad_() for tensor in draw(2, num_tokens, num_channels, dtype)
            ]
            y_BTE = gated_norm(*leaves, num_groups=num_groups, eps=1e-5, form=name)
            results.append([y_BTE, *torch.autograd.grad(y_BTE.sin().sum(), leaves)])
        for found, wanted in zip(*results, strict=True):
            assert_close(found, wanted, allowed)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_agree_with_finite_differences(form):
    leaves = [tensor.requires_grad_() for tensor in draw(1, 3, 6, torch.float64)]
    assert torch.autograd.gradcheck(
        lambda *inputs: gated_norm(*inputs, num_groups=2, eps=1e-3, form=form), leaves
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_channels", [10, 128])
def test_without_a_gate_it_is_the_norm_of_a_layer(form, num_channels):
    for dtype in (torch.float64, torch.float32):  # that of transformers computes in float32
        y_BTE, _, weight_E = draw(2, 300, num_channels, dtype)
        norm = LlamaRMSNorm(num_channels, eps=1e-5).to(dtype)
        norm.weight = torch.nn.Parameter(weight_E)
        leaves = [y_BTE.requires_grad_(), norm.weight]
        normed_BTE = gated_norm(y_BTE, None, norm.weight, num_groups=1, eps=1e-5, form=form)
        wanted_BTE = norm(y_BTE)
        assert_close(normed_BTE, wanted_BTE, 2e-6)
        results = [torch.autograd.grad(x.sin().sum(), leaves) for x in (normed_BTE, wanted_BTE)]
        for found, wanted in zip(*results, strict=True):
            assert_close(found, wanted, 2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_without_a_gate_agree_with_finite_differences(form):
    y_BTE, _, weight_E = (tensor.requires_grad_() for tensor in draw(1, 3, 6, torch.float64))
    assert torch.autograd.gradcheck(
        lambda y, w: gated_norm(y, None, w, num_groups=2, eps=1e-3, form=form), [y_BTE, weight_E]
    )


@pytest.mark.parametrize("form", FORMS)
def test_without_gate_and_weight_each_group_has_size_one(form):
    y_BTE, z_BTE, weight_E = draw(1, 4, 12, torch.float32)
    open_BTE, ones_E = torch.full_like(z_BTE, 30.0), torch.ones_like(weight_E)
    normed_BTE = gated_norm(y_BTE, open_BTE, ones_E, num_groups=3, eps=0.0, form=form)
    squares_BTG = normed_BTE.unflatten(-1, (3, -1)).square().mean(-1)
    torch.testing.assert_close(squares_BTG, torch.ones_like(squares_BTG))


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_computed_in_float32(form):
    y_BTE, z_BTE, weight_E = draw(1, 4, 12, torch.float32)
    half_BTE = gated_norm(
        y_BTE.bfloat16(), z_BTE.bfloat16(), weight_E.bfloat16(), num_groups=3, eps=1e-5, form=form
    )
    whole_BTE = gated_norm(y_BTE, z_BTE, weight_E, num_groups=3, eps=1e-5, form=form)
    assert half_BTE.dtype == torch.bfloat16
    assert_close(half_BTE.float(), whole_BTE, 0.02)
