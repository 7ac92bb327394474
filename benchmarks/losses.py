"""Compare the fused head of distillation with the dense form: memory, time and rounding.

Legend: N tokens, D model width, V vocabulary.

    OMP_NUM_THREADS=1 python benchmarks/losses.py
    OMP_NUM_THREADS=1 python benchmarks/losses.py --part memory

Dense is what a loss written in a few lines of PyTorch holds: the logits of both models for all
tokens, and what autograd keeps of them. Chunked cross entropy is the usual remedy for one model:
`torch.nn.functional.cross_entropy` and its backward pass, 256 tokens at a time.
"""

import argparse
import json
import statistics
import time
from copy import copy

import torch
from machine import describe_machine, forget_peak, peak_bytes, run_apart, table
from torch import Tensor
from torch.nn import functional

from hybridize.ops.divergence import (
    Head,
    LossTerm,
    Term,
    cross_entropy,
    forward_kl,
    head_losses,
    js,
    reverse_kl,
)

LOSSES: dict[str, tuple[LossTerm, ...]] = {
    "reverse_kl": (reverse_kl,),
    "forward_kl": (forward_kl,),
    "js": (js,),
    "cross_entropy": (cross_entropy,),
    "reverse_kl + cross_entropy": (reverse_kl, cross_entropy),
}
DENSE = "dense reverse_kl"
CHUNKED = "chunked cross entropy"
SPREAD = 2.0
"""Standard deviation of the logits."""


class Case:
    """Random states and heads of two models; the student's have gradients."""

    def __init__(self, tokens: int, width: int, vocab: int, distance: float) -> None:
        """Make the student's logits differ from the teacher's by `distance` of their spread."""
        make = torch.Generator().manual_seed(17)
        self.teacher_hidden_ND = torch.randn(tokens, width, generator=make)
        self.teacher_weight_VD = torch.randn(vocab, width, generator=make)
        self.teacher_weight_VD *= SPREAD / width**0.5
        noise_ND = torch.randn(tokens, width, generator=make)
        self.hidden_ND = (self.teacher_hidden_ND + distance * noise_ND).requires_grad_()
        self.weight_VD = self.teacher_weight_VD.clone().requires_grad_()
        self.targets_N = torch.randint(vocab, (tokens,), generator=make)

    def to(self, dtype: torch.dtype) -> "Case":
        """Change the type of everything but the targets."""
        for name, value in vars(self).items():
            if value.is_floating_point():
                changed = value.detach().to(dtype)
                setattr(self, name, changed.requires_grad_(value.requires_grad))
        return self

    def fused(self, name: str) -> Tensor:
        """Compute a mixture with the fused head, and its gradients."""
        terms = [Term(loss) for loss in LOSSES[name]]
        alone = name == "cross_entropy"
        total, _ = head_losses(
            self.hidden_ND,
            Head(self.weight_VD),
            terms,
            teacher_hidden_ND=None if alone else self.teacher_hidden_ND,
            teacher_head=None if alone else Head(self.teacher_weight_VD),
            targets_N=self.targets_N,
        )
        total.backward()
        return total.detach()

    def dense(self, name: str = "reverse_kl", exact: torch.dtype | None = None) -> Tensor:
        """Compute a mixture with all logits at once, and its gradients; after the products of
        states and heads in the precision `exact`, if one is given."""
        student_NV = torch.log_softmax(self.hidden_ND @ self.weight_VD.T, -1, dtype=exact)
        with torch.no_grad():
            logits_NV = self.teacher_hidden_ND @ self.teacher_weight_VD.T
            teacher_NV = torch.log_softmax(logits_NV, -1, dtype=exact)
        total = student_NV.new_zeros(())
        for loss in LOSSES[name]:
            if loss is cross_entropy:
                total = total + functional.nll_loss(student_NV, self.targets_N, reduction="sum")
            if loss is reverse_kl:
                total = total + _kl(student_NV, teacher_NV)
            if loss is forward_kl:
                total = total + _kl(teacher_NV, student_NV)
            if loss is js:
                mixture_NV = torch.logaddexp(student_NV, teacher_NV) - torch.log(torch.tensor(2.0))
                both = _kl(student_NV, mixture_NV) + _kl(teacher_NV, mixture_NV)
                total = total + both / 2
        total.backward()
        return total.detach()

    def rounded(self, name: str) -> Tensor:
        """Compute a mixture and its gradients with float32 products and all else in float64."""
        return self.dense(name, torch.float64)

    def chunked(self) -> Tensor:
        """Compute cross entropy and its gradients 256 tokens at a time."""
        total = self.hidden_ND.new_zeros(())
        for hidden_ND, targets_N in zip(
            self.hidden_ND.split(256), self.targets_N.split(256), strict=True
        ):
            logits_NV = hidden_ND @ self.weight_VD.T
            loss = functional.cross_entropy(logits_NV, targets_N, reduction="sum")
            loss.backward()
            total += loss.detach()
        return total

    def run(self, name: str) -> Tensor:
        """Run one of the forms by its name, from no gradients on."""
        self.hidden_ND.grad = self.weight_VD.grad = None
        if name == DENSE:
            return self.dense()
        return self.chunked() if name == CHUNKED else self.fused(name)


def _kl(first_NV: Tensor, second_NV: Tensor) -> Tensor:
    return (first_NV.exp() * (first_NV - second_NV)).sum()


def measure_memory(name: str, tokens: int, width: int, vocab: int) -> int:
    """Return the bytes a form takes beside states and heads, its gradients included."""
    case = Case(tokens, width, vocab, 0.3)
    before = forget_peak()
    case.run(name)
    return peak_bytes() - before


def show_memory(tokens: int, width: int, vocab: int) -> str:
    """Measure each form in a process of its own; dense on few tokens, its line continued."""
    rows, fused_ce, dense = [], 0, 0.0
    few = (tokens // 8, tokens // 4)
    sizes = [int(run_apart("--peak", DENSE, *map(str, (n, width, vocab)))) for n in few]
    dense = sizes[1] + (sizes[1] - sizes[0]) / (few[1] - few[0]) * (tokens - few[1])
    rows.append([f"{DENSE} (from {few[0]} and {few[1]} tokens)", f"{dense / 2**20:,.0f}", "", ""])
    for name in (CHUNKED, "cross_entropy", *(name for name in LOSSES if name != "cross_entropy")):
        taken = int(run_apart("--peak", name, tokens, width, vocab))
        fused_ce = taken if name == "cross_entropy" else fused_ce
        ratio = f"{taken / fused_ce:.2f}" if fused_ce else ""
        label = name if name == CHUNKED else f"fused {name}"
        rows.append([label, f"{taken / 2**20:,.0f}", ratio, f"{dense / taken:.1f}"])
    head = ("form", "MiB", "of fused cross_entropy", "times under dense")
    return f"Peak memory beside states and heads, {tokens} tokens:\n\n{table(head, rows)}"


def show_time(tokens: int, width: int, vocab: int, repeats: int) -> str:
    """Take turns between dense and fused forms on as many tokens as dense has room for.

    Counted are seconds of the processor, which other work on the machine changes less.
    """
    case = Case(tokens, width, vocab, 0.3)
    seconds: dict[str, list[float]] = {name: [] for name in (DENSE, "reverse_kl", "cross_entropy")}
    for _ in range(repeats):
        for name, times in seconds.items():
            started = time.process_time()
            case.run(name)
            times.append(time.process_time() - started)
    dense = statistics.median(seconds[DENSE])
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [[name, f"{s:.2f}", f"{s / dense:.2f}"] for name, s in medians.items()]
    head = ("form", "seconds of the processor", "of dense")
    return f"Time, {tokens} tokens, medians of {repeats} in turns:\n\n{table(head, rows)}"


def show_rounding(tokens: int, width: int, vocab: int) -> str:
    """Compare float32, fused and dense, with dense float64; and what float32 products alone do."""
    by_norm, by_worst = [], []
    for distance in (1.0, 0.1):
        case = Case(tokens, width, vocab, distance)
        exact = copy(case).to(torch.float64)
        for name in LOSSES:
            wanted = _results(exact, "dense", name)
            norms = [name, f"{float(wanted[0]) / tokens:.3f}"]
            worsts = [*norms]
            for form in ("fused", "dense", "rounded"):
                found = _results(case, form, name)
                for a, b in list(zip(found, wanted, strict=True))[form == "rounded" :]:
                    norms.append(f"{float((a - b).norm() / b.norm()):.1e}")
                    worsts.append(f"{float((a - b).abs().max() / b.abs().max()):.1e}")
            by_norm.append(norms)
            by_worst.append(worsts)
    head = ["loss", "nats a token"]
    head += [f"{form}: {what}" for form in ("fused", "dense") for what in ("loss", "dh", "dW")]
    head += ["products alone: dh", "products alone: dW"]
    return (
        f"Relative difference of float32 from dense float64, {tokens} tokens; dh and dW are the "
        "gradients of states and head. `Products alone` computes in float64 what follows from "
        "float32 products of states and heads. As the norm of the difference over the norm:\n\n"
        f"{table(head, by_norm)}\n\nThe largest difference over the largest value:\n\n"
        f"{table(head, by_worst)}"
    )


def _results(case: Case, form: str, name: str) -> tuple[Tensor, Tensor, Tensor]:
    case.hidden_ND.grad = case.weight_VD.grad = None
    total = getattr(case, form)(name)
    assert case.hidden_ND.grad is not None and case.weight_VD.grad is not None
    return total, case.hidden_ND.grad, case.weight_VD.grad


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["memory", "time", "rounding"])
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=131_072)
    parser.add_argument("--time-tokens", type=int, default=512)
    parser.add_argument("--rounding-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    if given.peak:
        name, *sizes = given.peak
        print(json.dumps(measure_memory(name, *map(int, sizes))))
        return
    sizes = (given.width, given.vocab)
    print(f"{describe_machine()}. Width {sizes[0]}, vocabulary {sizes[1]}, float32.")
    if given.part in (None, "rounding"):
        print("\n" + show_rounding(given.rounding_tokens, *sizes), flush=True)
    if given.part in (None, "time"):
        print("\n" + show_time(given.time_tokens, *sizes, given.repeats), flush=True)
    if given.part in (None, "memory"):
        print("\n" + show_memory(given.tokens, *sizes), flush=True)


if __name__ == "__main__":
    main()
