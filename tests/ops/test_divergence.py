"""Losses from hidden states: their values, their gradients, and that chunks change nothing."""

import weakref

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from hybridize.ops import divergence
from hybridize.ops.divergence import (
    Head,
    Term,
    cross_entropy,
    forward_kl,
    head_losses,
    js,
    reverse_kl,
)

N, D, V = 13, 6, 11
DIVISOR = 1.6
LOSSES = [reverse_kl, forward_kl, js, cross_entropy]


@pytest.fixture
def case():
    make = torch.Generator().manual_seed(0)

    def draw(*shape, scale=1.0):
        return scale * torch.randn(*shape, generator=make, dtype=torch.float64)

    return {
        "hidden_ND": draw(N, D).requires_grad_(),
        "weight_VD": draw(V, D).requires_grad_(),
        "bias_V": draw(V).requires_grad_(),
        "teacher_hidden_ND": draw(N, D + 1),
        "teacher_weight_VD": draw(V, D + 1),
        "targets_N": torch.randint(V, (N,), generator=make),
    }


def losses(case, terms, chunk_tokens=None):
    return head_losses(
        case["hidden_ND"],
        Head(case["weight_VD"], case["bias_V"], DIVISOR),
        terms,
        teacher_hidden_ND=case["teacher_hidden_ND"],
        teacher_head=Head(case["teacher_weight_VD"], divisor=DIVISOR),
        targets_N=case["targets_N"],
        chunk_tokens=chunk_tokens,
    )


def reference(case, loss, temperature=1.0):
    """The same sums by torch.distributions and recorded gradients, all logits at once."""
    logits_NV = (case["hidden_ND"] @ case["weight_VD"].T + case["bias_V"]) / DIVISOR
    student = Categorical(logits=logits_NV / temperature)
    teacher_logits_NV = case["teacher_hidden_ND"] @ case["teacher_weight_VD"].T / DIVISOR
    teacher = Categorical(logits=teacher_logits_NV / temperature)
    if loss is reverse_kl:
        return kl_divergence(student, teacher).sum()
    if loss is forward_kl:
        return kl_divergence(teacher, student).sum()
    if loss is cross_entropy:
        return -student.log_prob(case["targets_N"]).sum()
    mixture = Categorical(probs=(student.probs + teacher.probs) / 2)
    return (kl_divergence(student, mixture) + kl_divergence(teacher, mixture)).sum() / 2


def gradients(case, value):
    return torch.autograd.grad(value, [case["hidden_ND"], case["weight_VD"], case["bias_V"]])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 4, 13])
def test_values_and_gradients_equal_torch_distributions(case, loss, temperature, chunk_tokens):
    total, sums = losses(case, [Term(loss, 1.0, temperature)], chunk_tokens)
    expected = reference(case, loss, temperature)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(sums[0], expected)
    torch.testing.assert_close(gradients(case, 3 * total), gradients(case, 3 * expected))


def test_gradients_agree_with_finite_differences(case):
    terms = [Term(reverse_kl, 0.5, 2.0), Term(js, 0.3), Term(cross_entropy, 0.2)]

    def total(hidden_ND, weight_VD, bias_V):
        changed = {"hidden_ND": hidden_ND, "weight_VD": weight_VD, "bias_V": bias_V}
        return losses({**case, **changed}, terms, 5)[0]

    inputs = (case["hidden_ND"], case["weight_VD"], case["bias_V"])
    assert torch.autograd.gradcheck(total, inputs)


def test_a_mixture_is_the_weighted_sum_and_weight_zero_only_measures(case):
    total, sums = losses(case, [Term(reverse_kl, 0.7), Term(forward_kl, 0.3), Term(js, 0.0)], 4)
    expected = 0.7 * reference(case, reverse_kl) + 0.3 * reference(case, forward_kl)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(sums[2], reference(case, js).detach())
    torch.testing.assert_close(gradients(case, total), gradients(case, expected))


def test_no_divergence_from_itself(case):
    same = {
        **case,
        "teacher_hidden_ND": case["hidden_ND"].detach(),
        "teacher_weight_VD": case["weight_VD"].detach(),
        "bias_V": None,
    }
    total, sums = losses(same, [Term(reverse_kl), Term(forward_kl), Term(js)])
    assert sums.abs().max() < 1e-12
    (gradient_ND,) = torch.autograd.grad(total, [case["hidden_ND"]])
    assert gradient_ND.abs().max() < 1e-12


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk_tokens", [1, 3, 4, 5, 12, 13, 14])
def test_every_valid_token_contributes(case, loss, chunk_tokens):
    """Whatever the chunk: none is left out, at a border or after the first chunk, none is twice."""
    assert N % chunk_tokens or chunk_tokens in (1, N), "chunks end within the last one"
    total, _ = losses(case, [Term(loss)], chunk_tokens)
    gradient_ND, _, _ = gradients(case, total)
    assert gradient_ND.norm(dim=-1).min() > 1e-3
    alone = {}
    for token in range(N):
        one = slice(token, token + 1)
        part = {
            name: value[one] if name.endswith(("hidden_ND", "targets_N")) else value
            for name, value in case.items()
        }
        alone[token] = losses(part, [Term(loss)])[0].detach()
        moved_ND = case["hidden_ND"].detach().clone()
        moved_ND[token] += 0.1
        changed, _ = losses({**case, "hidden_ND": moved_ND}, [Term(loss)], chunk_tokens)
        after, _ = losses({**part, "hidden_ND": moved_ND[one]}, [Term(loss)])
        torch.testing.assert_close(changed - total.detach(), after - alone[token])
        assert abs(changed - total) > 1e-6
    torch.testing.assert_close(sum(alone.values()), total.detach())


@pytest.mark.parametrize("block_values", [1, 2 * V, 3 * V + 1, 100 * V])
def test_blocks_within_a_chunk_change_nothing(case, monkeypatch, block_values):
    terms = [Term(reverse_kl, 0.5, 2.0), Term(js, 0.3), Term(cross_entropy, 0.2)]
    total, sums = losses(case, terms, 5)
    monkeypatch.setattr(divergence, "BLOCK_VALUES", block_values)
    again, sums_again = losses(case, terms, 5)
    torch.testing.assert_close(sums, sums_again)
    torch.testing.assert_close(gradients(case, total), gradients(case, again))


def test_a_kept_graph_can_be_gone_through_again(case):
    total, _ = losses(case, [Term(reverse_kl)], 4)
    inputs = [case["hidden_ND"], case["weight_VD"], case["bias_V"]]
    first = torch.autograd.grad(2 * total, inputs, retain_graph=True)
    second = torch.autograd.grad(3 * total, inputs)
    torch.testing.assert_close([2 * x / 3 for x in second], list(first))


def near(distance, *, scale=1.0, tokens=16, width=1024, vocab=4096):
    """A student whose logits differ from a teacher's by `distance` of their spread, 2 `scale`."""
    make = torch.Generator().manual_seed(2)
    teacher_ND = torch.randn(tokens, width, generator=make)
    teacher_VD = torch.randn(vocab, width, generator=make) * (2 * scale / width**0.5)
    noise_ND = torch.randn(tokens, width, generator=make)
    return {
        "hidden_ND": (teacher_ND + distance * noise_ND).requires_grad_(),
        "weight_VD": (teacher_VD + 1e-4 * distance).requires_grad_(),
        "bias_V": torch.randn(vocab, generator=make).mul_(distance).requires_grad_(),
        "teacher_hidden_ND": teacher_ND,
        "teacher_weight_VD": teacher_VD,
        "targets_N": torch.randint(vocab, (tokens,), generator=make),
    }


def double(case):
    """The same values in float64."""
    return {
        name: value.detach().double().requires_grad_(value.requires_grad)
        if value.is_floating_point()
        else value
        for name, value in case.items()
    }


def relative(found, wanted):
    return float(((found - wanted).norm() / wanted.norm()).detach())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("distance", [1.0, 0.1, 0.02])
def test_float32_differs_from_float64_by_less_than_1e_6(loss, distance):
    """At 1 to 0.0003 nats a token; products taken in float32 give 2e-6 to 4e-5."""
    case = near(distance)
    total, _ = losses(case, [Term(loss)], 6)
    expected = reference(double(case), loss)
    assert expected.dtype == torch.float64
    if distance > 0.05:
        assert relative(total, expected) < 1e-6
    exact = double(case)
    wanted = gradients(exact, reference(exact, loss))
    for found, gradient in zip(gradients(case, total), wanted, strict=True):
        assert relative(found, gradient) < 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_distributions_far_apart_stay_finite(loss):
    """Where one says nothing of what the other is sure of, by e to the hundreds."""
    case = near(1.0, scale=60.0, vocab=64)
    total, _ = losses(case, [Term(loss)])
    exact = double(case)
    expected = reference(exact, loss)
    assert relative(total, expected) < 1e-5
    for found, gradient in zip(gradients(case, total), gradients(exact, expected), strict=True):
        assert (found - gradient).norm() < 1e-4 * (1 + gradient.norm())


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors made within it, and the most that lived at a time."""

    def __init__(self):
        super().__init__()
        self.held, self.most, self.largest, self.seen = 0, 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.add(value.untyped_storage())
        return result

    def add(self, storage):
        size, key = storage.nbytes(), storage._cdata
        if key in self.seen or size == 0:
            return
        self.seen.add(key)
        self.held += size
        self.most, self.largest = max(self.most, self.held), max(self.largest, size)
        weakref.finalize(storage, self.drop, key, size)

    def drop(self, key, size):
        self.seen.discard(key)
        self.held -= size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_all_logits_is_ever_made(dtype, monkeypatch):
    """Reverse KL takes what cross entropy takes: the budget of logits counts both models."""
    tokens, width, vocab = 1536, 8, 4096
    monkeypatch.setattr(divergence, "CHUNK_VALUES", 2**19)
    monkeypatch.setattr(divergence, "BLOCK_VALUES", 2**12)
    make = torch.Generator().manual_seed(1)
    hidden_ND = torch.randn(tokens, width, generator=make)
    weight_VD = torch.randn(vocab, width, generator=make)
    teacher_VD, targets_N = weight_VD + 1, torch.zeros(tokens, dtype=torch.long)
    peaks = {}
    for loss in (cross_entropy, reverse_kl):
        student_ND = hidden_ND.clone().requires_grad_()
        student_VD = weight_VD.clone().requires_grad_()
        taught = loss is not cross_entropy
        with Peak() as peak, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            total, _ = head_losses(
                student_ND,
                Head(student_VD),
                [Term(loss)],
                teacher_hidden_ND=hidden_ND if taught else None,
                teacher_head=Head(teacher_VD) if taught else None,
                targets_N=targets_N,
            )
            total.backward()
        assert student_VD.grad is not None
        assert peak.largest <= 4 * 2**19
        peaks[loss] = peak.most
    heads = 2 if dtype == torch.bfloat16 else 0
    extra = heads * vocab * width
    assert peaks[reverse_kl] <= 1.1 * peaks[cross_entropy] + extra
    assert peaks[reverse_kl] < 4 * tokens * vocab / 8


def test_a_frozen_head_and_evaluation_get_no_gradient(case):
    frozen = {**case, "weight_VD": case["weight_VD"].detach(), "bias_V": None}
    losses(frozen, [Term(reverse_kl)])[0].backward()
    assert case["hidden_ND"].grad is not None
    with torch.no_grad():
        total, _ = losses(case, [Term(reverse_kl)])
    assert not total.requires_grad
    torch.testing.assert_close(total, reference(case, reverse_kl).detach())


def test_no_tokens_cost_nothing(case):
    none = {
        name: value[:0] if name.endswith(("hidden_ND", "targets_N")) else value
        for name, value in case.items()
    }
    total, sums = losses(none, [Term(cross_entropy)])
    assert total == 0 and sums.tolist() == [0.0]
    total.backward()
    assert case["weight_VD"].grad.abs().max() == 0


def test_autocast_rounds_the_products_and_nothing_else(case):
    single = {
        name: value.float().detach().requires_grad_() if value.is_floating_point() else value
        for name, value in case.items()
    }
    exact = reference(single, reverse_kl)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = losses(single, [Term(reverse_kl)])
    assert total.dtype == torch.float32
    assert 0 < abs(total - exact) / exact < 0.02
    (gradient_ND,) = torch.autograd.grad(total, [single["hidden_ND"]])
    (expected_ND,) = torch.autograd.grad(exact, [single["hidden_ND"]])
    assert (gradient_ND - expected_ND).norm() / expected_ND.norm() < 0.03
