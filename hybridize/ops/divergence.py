"""Losses of a student's next-token distribution, from hidden states and output heads.

Legend: N counted tokens, D model width, V vocabulary.

The head is applied to a chunk of tokens at a time and the gradient of the logits is written down
rather than recorded, so that at no moment more than one chunk of logits exists. All losses are in
nats, in float32, summed over tokens. At a temperature other than 1 both distributions are softened
before they are compared; the result is not multiplied by the squared temperature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_VALUES, CHUNK_TOKENS = 2**22, 256
"""Logits in one chunk by default, 16 MiB of them, but never fewer than this many tokens."""

LossTerm = Callable[[Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]
"""(student_NV, teacher_NV, targets_N) -> nats_N and gradient_NV with respect to student logits.

`student_NV` and `teacher_NV` are log probabilities; what a loss does not use may be None.
"""


def reverse_kl(
    student_NV: Tensor, teacher_NV: Tensor | None, targets_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return KL(student || teacher), the student's own view of its error (Apriel-H1's loss)."""
    assert teacher_NV is not None, "reverse KL compares with a teacher"
    probability_NV = student_NV.exp()
    ratio_NV = student_NV - teacher_NV
    nats_N = (probability_NV * ratio_NV).sum(-1)
    return nats_N, ratio_NV.sub_(nats_N[:, None]).mul_(probability_NV)


def forward_kl(
    student_NV: Tensor, teacher_NV: Tensor | None, targets_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return KL(teacher || student), which makes the student cover all that the teacher may say."""
    assert teacher_NV is not None, "forward KL compares with a teacher"
    teacher_probability_NV = teacher_NV.exp()
    nats_N = (teacher_probability_NV * (teacher_NV - student_NV)).sum(-1)
    return nats_N, student_NV.exp().sub_(teacher_probability_NV)


def js(
    student_NV: Tensor, teacher_NV: Tensor | None, targets_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the Jensen-Shannon divergence: the mean KL of both to their mixture, at most log 2."""
    assert teacher_NV is not None, "the Jensen-Shannon divergence compares with a teacher"
    mixture_NV = torch.logaddexp(student_NV, teacher_NV) - log(2)
    probability_NV = student_NV.exp()
    ratio_NV = student_NV - mixture_NV
    student_nats_N = (probability_NV * ratio_NV).sum(-1)
    teacher_nats_N = (teacher_NV.exp() * (teacher_NV - mixture_NV)).sum(-1)
    gradient_NV = ratio_NV.sub_(student_nats_N[:, None]).mul_(probability_NV).mul_(0.5)
    return (student_nats_N + teacher_nats_N) / 2, gradient_NV


def cross_entropy(
    student_NV: Tensor, teacher_NV: Tensor | None = None, targets_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the negative log probability of the token that follows."""
    assert targets_N is not None, "cross entropy needs the tokens that follow"
    nats_N = -student_NV.gather(-1, targets_N[:, None])[:, 0]
    gradient_NV = student_NV.exp()
    gradient_NV.scatter_add_(-1, targets_N[:, None], -torch.ones_like(nats_N)[:, None])
    return nats_N, gradient_NV


@dataclass(frozen=True)
class Head:
    """An output head: logits_NV = (hidden_ND @ weight_VD.T + bias_V) / divisor."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    divisor: float = 1.0


@dataclass(frozen=True)
class Term:
    """One loss of a mixture."""

    loss: LossTerm
    weight: float = 1.0
    """Factor in the total; a loss with weight 0 is measured and not trained on."""
    temperature: float = 1.0
    """Both sets of logits are divided by it."""


def head_losses(
    hidden_ND: Tensor,
    head: Head,
    terms: Sequence[Term],
    *,
    teacher_hidden_ND: Tensor | None = None,
    teacher_head: Head | None = None,
    targets_N: Tensor | None = None,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum a mixture of losses over tokens without ever holding all their logits.

    Gradients reach `hidden_ND` and `head`, never the teacher. Under autocast the products with the
    heads are taken in its type; softmax and losses are always float32 (float64 for float64).

    Args:
        chunk_tokens: tokens whose logits are held at a time; None takes 16 MiB of logits.

    Returns:
        The weighted sum in nats, which has a gradient, and the sum of each term, which has none.
    """
    assert (teacher_hidden_ND is None) == (teacher_head is None), "a teacher is hidden and head"
    chunk = chunk_tokens or max(CHUNK_TOKENS, CHUNK_VALUES // head.weight_VD.shape[0])
    teacher = None if teacher_head is None else (teacher_hidden_ND, teacher_head)
    apply: Callable[..., tuple[Tensor, Tensor]] = _HeadLosses.apply
    return apply(
        hidden_ND,
        head.weight_VD,
        head.bias_V,
        head.divisor,
        teacher,
        targets_N,
        tuple(terms),
        chunk,
        torch.is_grad_enabled(),
    )


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913  (autograd passes every input by position)
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        divisor: float,
        teacher: tuple[Tensor, Head] | None,
        targets_N: Tensor | None,
        terms: tuple[Term, ...],
        chunk: int,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        needs = [with_gradient and need for need in ctx.needs_input_grad[:3]]
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        sums = hidden_ND.new_zeros(len(terms), dtype=exact)
        hidden_grad_ND = torch.empty_like(hidden_ND) if needs[0] else None
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=exact) if needs[1] else None
        bias_grad_V = None
        if bias_V is not None and needs[2]:
            bias_grad_V = torch.zeros_like(bias_V, dtype=exact)
        matmul = _matmul_type(hidden_ND)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            head = Head(weight_VD.to(matmul), bias_V, divisor)
            if teacher is not None:
                teacher = (teacher[0], _cast(teacher[1], _matmul_type(teacher[0])))
            for start in range(0, hidden_ND.shape[0], chunk):
                part = slice(start, start + chunk)
                gradient_NV = _chunk(
                    sums,
                    _logits(hidden_ND[part], head, exact),
                    None if teacher is None else _logits(teacher[0][part], teacher[1], exact),
                    None if targets_N is None else targets_N[part],
                    terms,
                    any(needs),
                )
                gradient_NV = _divide(gradient_NV, divisor)
                if bias_grad_V is not None:
                    bias_grad_V += gradient_NV.sum(0)
                gradient_NV = gradient_NV.to(matmul)
                if hidden_grad_ND is not None:
                    hidden_grad_ND[part] = gradient_NV @ head.weight_VD
                if weight_grad_VD is not None:
                    weight_grad_VD += gradient_NV.T @ hidden_ND[part].to(matmul)
        ctx.save_for_backward(hidden_grad_ND, weight_grad_VD, bias_grad_V)
        ctx.types = (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        ctx.mark_non_differentiable(sums)
        total = sums.new_zeros(())
        for value, term in zip(sums.unbind(), terms, strict=True):
            total = total + term.weight * value if term.weight else total
        return total, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total_grad: Tensor, _sums_grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = (
            None if saved is None else (saved * total_grad).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.types, strict=True)
        )
        return (*grads, None, None, None, None, None, None)


def _chunk(
    sums: Tensor,
    logits_NV: Tensor,
    teacher_logits_NV: Tensor | None,
    targets_N: Tensor | None,
    terms: tuple[Term, ...],
    with_gradient: bool,
) -> Tensor:
    """Add the losses of one chunk to `sums`; return the weighted gradient of its logits."""
    gradient_NV = torch.zeros_like(logits_NV) if with_gradient else logits_NV
    for temperature in dict.fromkeys(term.temperature for term in terms):
        student_NV = torch.log_softmax(logits_NV / temperature, -1)
        teacher_NV = None
        if teacher_logits_NV is not None:
            teacher_NV = torch.log_softmax(teacher_logits_NV / temperature, -1)
        for index, term in enumerate(terms):
            if term.temperature != temperature:
                continue
            nats_N, term_gradient_NV = term.loss(student_NV, teacher_NV, targets_N)
            sums[index] += nats_N.sum()
            if with_gradient and term.weight:
                gradient_NV.add_(term_gradient_NV, alpha=term.weight / temperature)
    return gradient_NV


def _logits(hidden_ND: Tensor, head: Head, exact: torch.dtype) -> Tensor:
    logits_NV = (hidden_ND.to(head.weight_VD.dtype) @ head.weight_VD.T).to(exact)
    if head.bias_V is not None:
        logits_NV = logits_NV + head.bias_V.to(exact)
    return _divide(logits_NV, head.divisor)


def _divide(values_NV: Tensor, divisor: float) -> Tensor:
    return values_NV if divisor == 1 else values_NV / divisor


def _cast(head: Head, dtype: torch.dtype) -> Head:
    return replace(head, weight_VD=head.weight_VD.to(dtype))


def _matmul_type(hidden_ND: Tensor) -> torch.dtype:
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device) and hidden_ND.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden_ND.dtype
