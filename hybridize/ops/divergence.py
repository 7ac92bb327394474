"""Losses of a student's next-token distribution, from hidden states and output heads.

Legend: N counted tokens, D model width, V vocabulary.

The head is applied to a chunk of tokens at a time and the gradient of the logits is written down
rather than recorded, in the place of the logits, so that at no moment more than one chunk of them
exists. All losses are in nats, in float32, summed over tokens. At a temperature other than 1 both
distributions are softened before they are compared; the result is not multiplied by the squared
temperature.

A divergence is made of differences of logits, small ones where the student is near. Float32 models
on a CPU take both products and their difference in float64, a few words at a time, and round what
is kept; elsewhere logits are products of the models' own type.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_VALUES, FAR_CHUNK_VALUES = 2**25, 2**27
"""Logits held at a time by default, student's and teacher's together: on the CPU 128 MiB in
float32; elsewhere 512 MiB, because fewer tokens would leave an accelerator waiting for memory."""
BLOCK_VALUES, FAR_BLOCK_VALUES = 2**18, 2**24
"""Logits that losses are computed of at a time: what fits a cache, or fills an accelerator. So
many weights of a head and products with them are also held in float64."""
FAR_RATIO = -80.0
"""Log of p / q below which p is nothing beside q, but its inverse still a float32."""

LossTerm = Callable[[Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]
"""(student_NV, ratio_NV, targets_N) -> nats_N and gradient_NV with respect to student logits.

`student_NV` is log p, of the student's probabilities p, and `ratio_NV` log(p / q), q the teacher's:
near the teacher it is far more exact than a difference of log probabilities. What a loss does not
use may be None. It must leave both as they are.
"""


def reverse_kl(
    student_NV: Tensor, ratio_NV: Tensor | None, targets_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return KL(student || teacher), the student's own view of its error (Apriel-H1's loss)."""
    assert ratio_NV is not None, "reverse KL compares with a teacher"
    probability_NV = student_NV.exp()
    nats_N = (probability_NV * ratio_NV).sum(-1)
    return nats_N, (ratio_NV - nats_N[:, None]).mul_(probability_NV)


def forward_kl(
    student_NV: Tensor, ratio_NV: Tensor | None, targets_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return KL(teacher || student), which makes the student cover all that the teacher may say.

    Its gradient p - q is the larger of both times 1 - exp(-|log(p / q)|).
    """
    assert ratio_NV is not None, "forward KL compares with a teacher"
    teacher_NV = student_NV - ratio_NV
    larger_NV = torch.maximum(student_NV, teacher_NV).exp_()
    nats_N = -teacher_NV.exp_().mul_(ratio_NV).sum(-1)
    gradient_NV = ratio_NV.abs().neg_().expm1_().mul_(larger_NV)
    return nats_N, gradient_NV.copysign_(ratio_NV)


def js(
    student_NV: Tensor, ratio_NV: Tensor | None, targets_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the Jensen-Shannon divergence: the mean KL of both to their mixture, at most log 2."""
    assert ratio_NV is not None, "the Jensen-Shannon divergence compares with a teacher"
    inverse_NV = ratio_NV.neg().clamp_(max=-FAR_RATIO)
    to_mixture_NV = torch.expm1(inverse_NV).div_(2).log1p_().neg_()
    probability_NV = student_NV.exp()
    student_nats_N = (probability_NV * to_mixture_NV).sum(-1)
    teacher_NV = (student_NV - ratio_NV).exp_()
    teacher_nats_N = inverse_NV.add_(to_mixture_NV).mul_(teacher_NV).sum(-1)
    gradient_NV = to_mixture_NV.sub_(student_nats_N[:, None]).mul_(probability_NV).mul_(0.5)
    return (student_nats_N + teacher_nats_N) / 2, gradient_NV


def cross_entropy(
    student_NV: Tensor, ratio_NV: Tensor | None = None, targets_N: Tensor | None = None
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
        chunk_tokens: tokens whose logits are held at a time; None takes `CHUNK_VALUES` logits, the
            teacher's counted.

    Returns:
        The weighted sum in nats, which has a gradient, and the sum of each term, which has none.
    """
    assert (teacher_hidden_ND is None) == (teacher_head is None), "a teacher is hidden and head"
    on_cpu, vocab_size = hidden_ND.device.type == "cpu", head.weight_VD.shape[0]
    num_heads = 1 if teacher_head is None else 2
    most = CHUNK_VALUES if on_cpu else FAR_CHUNK_VALUES
    matmul, teacher, in_float64 = _matmul_type(hidden_ND), None, False
    if teacher_hidden_ND is not None and teacher_head is not None:
        teacher_matmul = _matmul_type(teacher_hidden_ND)
        teacher = (teacher_hidden_ND, _cast(teacher_head, teacher_matmul))
        in_float64 = on_cpu and matmul == teacher_matmul == torch.float32
    call = _Call(
        divisor=head.divisor,
        teacher=teacher,
        targets_N=targets_N,
        terms=tuple(terms),
        chunk_tokens=chunk_tokens or max(1, most // (num_heads * vocab_size)),
        block_values=BLOCK_VALUES if on_cpu else FAR_BLOCK_VALUES,
        matmul=matmul,
        in_float64=in_float64,
        with_gradient=torch.is_grad_enabled(),
    )
    apply: Callable[..., tuple[Tensor, Tensor]] = _HeadLosses.apply
    return apply(hidden_ND, head.weight_VD, head.bias_V, call)


@dataclass(frozen=True, kw_only=True)
class _Call:
    """What one call of `head_losses` was given beside the tensors that have a gradient."""

    divisor: float
    teacher: tuple[Tensor, Head] | None
    targets_N: Tensor | None
    terms: tuple[Term, ...]
    chunk_tokens: int
    block_values: int
    matmul: torch.dtype
    in_float64: bool
    """Products with the heads are taken in float64: there is a teacher to differ from."""
    with_gradient: bool


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, call: _Call
    ) -> tuple[Tensor, Tensor]:
        ctx.call, ctx.needs = call, [call.with_gradient and x for x in ctx.needs_input_grad[:3]]
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V)
        sums, ctx.gradients = _run(call, hidden_ND, weight_VD, bias_V, ctx.needs)
        ctx.mark_non_differentiable(sums)
        total = sums.new_zeros(())
        for value, term in zip(sums.unbind(), call.terms, strict=True):
            total = total + term.weight * value if term.weight else total
        return total, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total_grad: Tensor, _sums_grad: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients are scaled where they are: that of the head may be the largest tensor in
        # memory. Who goes through a kept graph again pays with a second computation.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            hidden_ND, weight_VD, bias_V = ctx.saved_tensors
            _, gradients = _run(ctx.call, hidden_ND, weight_VD, bias_V, ctx.needs)
        scaled = (
            None if gradient is None else gradient.mul_(total_grad).to(like.dtype)
            for gradient, like in zip(gradients, ctx.saved_tensors, strict=True)
        )
        return (*scaled, None)


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _run(
    call: _Call, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, needs: list[bool]
) -> tuple[Tensor, Gradients]:
    """Return the sum of each term, and the gradients of the weighted sum that are needed."""
    exact = torch.promote_types(hidden_ND.dtype, torch.float32)
    sums = hidden_ND.new_zeros(len(call.terms), dtype=torch.float64)
    hidden_grad_ND = torch.empty_like(hidden_ND, dtype=call.matmul) if needs[0] else None
    weight_grad_VD = torch.zeros_like(weight_VD, dtype=exact) if needs[1] else None
    bias_grad_V = None
    if bias_V is not None and needs[2]:
        bias_grad_V = torch.zeros_like(bias_V, dtype=exact)
    with torch.no_grad(), torch.autocast(hidden_ND.device.type, enabled=False):
        head = Head(weight_VD.to(call.matmul), bias_V, call.divisor)
        rows = min(call.chunk_tokens, hidden_ND.shape[0])
        logits_NV = head.weight_VD.new_empty(rows, weight_VD.shape[0])
        other_NV = None
        if call.teacher is not None:
            other_NV = call.teacher[1].weight_VD.new_empty(logits_NV.shape)
        for start in range(0, hidden_ND.shape[0], call.chunk_tokens):
            part = slice(start, start + call.chunk_tokens)
            part_ND = hidden_ND[part].to(call.matmul)
            gradient_NV = logits_NV[: len(part_ND)]
            _multiply(call, head, part, part_ND, gradient_NV, other_NV)
            _differentiate(call, head, gradient_NV, other_NV, part, sums, any(needs))
            if bias_grad_V is not None:
                bias_grad_V += gradient_NV.sum(0, dtype=exact)
            if hidden_grad_ND is not None:
                torch.mm(gradient_NV, head.weight_VD, out=hidden_grad_ND[part])
            if weight_grad_VD is not None:
                _add_product(weight_grad_VD, gradient_NV, part_ND, call.block_values)
    return sums.to(exact), (hidden_grad_ND, weight_grad_VD, bias_grad_V)


def _multiply(
    call: _Call,
    head: Head,
    part: slice,
    part_ND: Tensor,
    logits_NV: Tensor,
    other_NV: Tensor | None,
) -> None:
    """Put a chunk's products with the heads in two places, the student's and the teacher's.

    Of float64 ones the logits of the student are put there, and their excess over the teacher's.
    """
    if call.teacher is None or other_NV is None:
        torch.mm(part_ND, head.weight_VD.T, out=logits_NV)
        return
    hidden_ND, teacher_head = call.teacher
    teacher_ND, other_NV = hidden_ND[part], other_NV[: len(part_ND)]
    if not call.in_float64:
        torch.mm(part_ND, head.weight_VD.T, out=logits_NV)
        torch.mm(teacher_ND.to(other_NV.dtype), teacher_head.weight_VD.T, out=other_NV)
        return
    part_ND, teacher_ND = part_ND.double(), teacher_ND.double()
    size = max(1, call.block_values // max(part_ND.shape))
    for start in range(0, logits_NV.shape[1], size):
        words = slice(start, start + size)
        student_NV = _float64_logits(part_ND, head, words)
        logits_NV[:, words] = student_NV
        other_NV[:, words] = student_NV.sub_(_float64_logits(teacher_ND, teacher_head, words))


def _float64_logits(hidden_ND: Tensor, head: Head, words: slice) -> Tensor:
    weight_VD, bias_V = head.weight_VD[words].double(), head.bias_V
    head = Head(weight_VD, None if bias_V is None else bias_V[words], head.divisor)
    return _finish(hidden_ND @ weight_VD.T, head, torch.float64)


def _differentiate(
    call: _Call,
    head: Head,
    logits_NV: Tensor,
    other_NV: Tensor | None,
    part: slice,
    sums: Tensor,
    with_gradient: bool,
) -> None:
    """Add the losses of a chunk to `sums`; put the gradient of its products in their place.

    It goes over a few tokens at a time, so that what is in between stays small and near.
    """
    exact = torch.promote_types(logits_NV.dtype, torch.float32)
    rows = max(1, call.block_values // logits_NV.shape[1])
    for start in range(0, len(logits_NV), rows):
        block = slice(start, min(start + rows, len(logits_NV)))
        block_NV, excess_NV = logits_NV[block], None if other_NV is None else other_NV[block]
        if not call.in_float64:
            block_NV = _finish(block_NV, head, exact)
            if call.teacher is not None and excess_NV is not None:
                excess_NV = block_NV - _finish(excess_NV, call.teacher[1], exact)
        targets_N = None if call.targets_N is None else call.targets_N[part][block]
        gradient_NV = _mix(sums, call.terms, block_NV, excess_NV, targets_N)
        if with_gradient:
            logits_NV[block] = _divide(gradient_NV, head.divisor)


def _mix(
    sums: Tensor,
    terms: tuple[Term, ...],
    logits_NV: Tensor,
    excess_NV: Tensor | None,
    targets_N: Tensor | None,
) -> Tensor:
    """Add the losses of a block to `sums`; return the weighted gradient of its logits.

    `excess_NV` is what the logits are above the teacher's.
    """
    gradient_NV = None
    for temperature in dict.fromkeys(term.temperature for term in terms):
        student_NV, ratio_NV = _normalise(
            _divide(logits_NV, temperature),
            None if excess_NV is None else _divide(excess_NV, temperature),
        )
        for index, term in enumerate(terms):
            if term.temperature != temperature:
                continue
            nats_N, term_gradient_NV = term.loss(student_NV, ratio_NV, targets_N)
            sums[index] += nats_N.sum(dtype=sums.dtype)
            if not term.weight:
                continue
            scale = term.weight / temperature
            if gradient_NV is None:
                gradient_NV = term_gradient_NV if scale == 1 else term_gradient_NV.mul_(scale)
            else:
                gradient_NV.add_(term_gradient_NV, alpha=scale)
    return torch.zeros_like(logits_NV) if gradient_NV is None else gradient_NV


def _normalise(logits_NV: Tensor, excess_NV: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return log p of a student and log(p / q) of it and a teacher, from its logits and excess."""
    student_NV, sum_N1 = _log_softmax(logits_NV)
    if excess_NV is None:
        return student_NV, None
    above_N1 = sum_N1 - _log_softmax(logits_NV - excess_NV)[1]
    return student_NV, excess_NV - above_N1.to(logits_NV.dtype)


def _log_softmax(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Return log probabilities and, in float64, the log of the sum of exponentials: the difference
    of two such sums is a part of a divergence."""
    most_N1 = logits_NV.amax(-1, keepdim=True)
    below_NV = logits_NV - most_N1
    sum_N1 = below_NV.exp().sum(-1, keepdim=True, dtype=torch.float64).log_()
    return below_NV.sub_(sum_N1.to(logits_NV.dtype)), sum_N1 + most_N1


def _finish(products_NV: Tensor, head: Head, exact: torch.dtype) -> Tensor:
    """Return the logits of a head from the products with its weight."""
    logits_NV = products_NV.to(exact)
    if head.bias_V is not None:
        logits_NV = logits_NV + head.bias_V.to(exact)
    return _divide(logits_NV, head.divisor)


def _add_product(
    weight_grad_VD: Tensor, gradient_NV: Tensor, hidden_ND: Tensor, block_values: int
) -> None:
    """Add the head's gradient of a chunk; products of another type go by parts of the vocabulary,
    because each is a tensor of its own."""
    if weight_grad_VD.dtype == gradient_NV.dtype:
        weight_grad_VD.addmm_(gradient_NV.T, hidden_ND)
        return
    size = max(1, block_values // hidden_ND.shape[1])
    for start in range(0, len(weight_grad_VD), size):
        words = slice(start, start + size)
        weight_grad_VD[words] += gradient_NV[:, words].T @ hidden_ND


def _divide(values_NV: Tensor, divisor: float) -> Tensor:
    return values_NV if divisor == 1 else values_NV / divisor


def _cast(head: Head, dtype: torch.dtype) -> Head:
    return replace(head, weight_VD=head.weight_VD.to(dtype))


def _matmul_type(hidden_ND: Tensor) -> torch.dtype:
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device) and hidden_ND.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden_ND.dtype
