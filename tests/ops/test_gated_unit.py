"""The gated unit of an MLP: the compiled form against the definition."""

import pytest
import torch

from hybridize.ops import forms, gated_unit
from tests.close import assert_close

CPU = torch.device("cpu")
FORMS = [
    name
    for name, form in forms.list_operators()["gated_unit"].items()
    if form.find_obstacle(CPU) is None
]


def draw(num_tokens, num_channels, dtype):
    """Return gate and up, the gate not side by side in memory."""
    torch.manual_seed(0)
    gate_BTF = 4 * torch.randn(2, num_tokens, num_channels + 3, dtype=dtype)[..., :num_channels]
    return gate_BTF, torch.randn(2, num_tokens, num_channels, dtype=dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_channels", [1, 10, 48])
@pytest.mark.parametrize("num_tokens", [1, 5, 300])
def test_forms_equal_the_definition(form, num_channels, num_tokens):
    for dtype, allowed in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        results = []
        for name in (form, "reference"):
            leaves = [leaf.requires_grad_() for leaf in draw(num_tokens, num_channels, dtype)]
            out_BTF = gated_unit(*leaves, form=name)
            results.append([out_BTF, *torch.autograd.grad(out_BTF.sin().sum(), leaves)])
        for found, wanted in zip(*results, strict=True):
            assert_close(found, wanted, allowed)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_agree_with_finite_differences(form):
    leaves = [leaf.requires_grad_() for leaf in draw(3, 6, torch.float64)]
    assert torch.autograd.gradcheck(lambda *inputs: gated_unit(*inputs, form=form), leaves)


@pytest.mark.parametrize("form", FORMS)
def test_far_gates_stay_finite(form):
    gate_BTF = torch.tensor([[[-1e4, -200.0, 0.0, 200.0, 1e4]]]).requires_grad_()
    out_BTF = gated_unit(gate_BTF, torch.ones(1, 1, 5), form=form)
    torch.testing.assert_close(out_BTF, torch.tensor([[[0.0, 0.0, 0.0, 200.0, 1e4]]]))
    (grad_BTF,) = torch.autograd.grad(out_BTF.sum(), [gate_BTF])
    torch.testing.assert_close(grad_BTF, torch.tensor([[[0.0, 0.0, 0.5, 1.0, 1.0]]]))


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_stays_bfloat16(form):
    gate_BTF, up_BTF = draw(4, 10, torch.float32)
    half_BTF = gated_unit(gate_BTF.bfloat16(), up_BTF.bfloat16(), form=form)
    assert half_BTF.dtype == torch.bfloat16
    assert_close(half_BTF.float(), gated_unit(gate_BTF, up_BTF, form=form), 0.02)
