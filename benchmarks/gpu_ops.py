"""Speed of the operators on a GPU, forward and backward: Triton, PyTorch, and other libraries.

    python benchmarks/gpu_ops.py > benchmarks/tables/gpu_ops.md

Candidates take turns in one process, and figures are medians. fla-core, mamba-ssm and
causal-conv1d take part where they are installed. Inputs are bfloat16, step sizes and decays
float32; every candidate gets the same numbers, in the layout that it wants.
"""

import argparse
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
from machine import describe_machine, table, take_turns
from torch import Tensor

from hybridize.ops import causal_conv, gated_delta_rule, selective_scan, ssd
from hybridize.ops.triton_support import find_obstacle

MIB = 2**20
LENGTHS = (1024, 4096, 16384)
Run = Callable[..., Tensor]
Case = tuple[str, dict[str, Tensor], dict[str, Run]]


def draw(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Draw normal numbers."""
    return torch.randn(shape, device=device, dtype=dtype)


def find(module: str, name: str) -> Run | None:
    """Return a function of another library, or None where that is not installed."""
    if find_spec(module.partition(".")[0]) is None:
        return None
    return getattr(import_module(module), name)


def convolution(num_tokens: int, device: torch.device) -> Case:
    """4096 channels, 4 taps."""
    inputs = {
        "x": draw(device, 2, num_tokens, 4096),
        "weight": draw(device, 4096, 4),
        "bias": draw(device, 4096),
    }
    runs = {form: _ours(causal_conv, form) for form in ("triton", "chunked")}
    if other := find("causal_conv1d", "causal_conv1d_fn"):
        runs["causal-conv1d"] = lambda x, weight, bias: other(x.transpose(1, 2), weight, bias)
    return "causal_conv, B2 D4096 W4", inputs, runs


def scan(num_tokens: int, device: torch.device) -> Case:
    """4096 channels in 256 groups, state 16, as mamba1 makes of 32 heads of width 128."""
    inputs = {
        "x": draw(device, 2, num_tokens, 4096),
        "dt": torch.rand(2, num_tokens, 4096, device=device) * 0.1,
        "A": -torch.rand(4096, 16, device=device) - 0.1,
        "B": draw(device, 2, num_tokens, 256, 16),
        "C": draw(device, 2, num_tokens, 256, 16),
        "D": torch.randn(4096, device=device),
    }
    runs = {form: _ours(selective_scan, form) for form in ("triton", "chunked")}
    if other := find("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn"):
        runs["mamba-ssm"] = lambda x, dt, A, B, C, D: other(
            *(x.transpose(1, 2), dt.transpose(1, 2).to(x.dtype), A),
            *(B.permute(0, 2, 3, 1), C.permute(0, 2, 3, 1), D),
        )
    return "selective_scan, B2 D4096 G256 N16", inputs, runs


def duality(num_tokens: int, device: torch.device) -> Case:
    """32 heads of width 128 in 32 groups, state 128, as mamba2 makes of an 8B teacher."""
    inputs = {
        "x": draw(device, 2, num_tokens, 32, 128),
        "dt": torch.rand(2, num_tokens, 32, device=device) * 0.1,
        "A": -torch.rand(32, device=device) - 0.1,
        "B": draw(device, 2, num_tokens, 32, 128) / 11,
        "C": draw(device, 2, num_tokens, 32, 128) / 11,
        "D": torch.randn(32, device=device),
    }
    runs = {form: _ours(ssd, form) for form in ("triton", "chunked")}
    if other := find("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined"):
        runs["mamba-ssm"] = lambda x, dt, A, B, C, D: other(x, dt, A, B, C, 256, D=D)
    return "ssd, B2 H32 P128 G32 N128", inputs, runs


def delta(num_tokens: int, device: torch.device) -> Case:
    """32 heads of width 128."""
    keys = draw(device, 2, num_tokens, 32, 128)
    inputs = {
        "q": draw(device, 2, num_tokens, 32, 128) / 11,
        "k": keys / keys.norm(dim=-1, keepdim=True),
        "v": draw(device, 2, num_tokens, 32, 128),
        "g": -torch.rand(2, num_tokens, 32, device=device) * 0.1,
        "beta": torch.rand(2, num_tokens, 32, device=device),
    }
    forms = import_module("hybridize.ops.gated_delta_rule").FORMS
    runs = {form: _ours(gated_delta_rule, form) for form in ("triton", "chunked") if form in forms}
    if other := find("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"):
        runs["fla-core"] = lambda q, k, v, g, beta: other(q, k, v, g, beta, scale=1.0)[0]
    return "gated_delta_rule, B2 H32 P128 N128", inputs, runs


def _ours(operator: Callable[..., tuple[Tensor, Tensor]], form: str) -> Run:
    return lambda *inputs: operator(*inputs, form=form)[0]


def measure(case: Case, num_tokens: int, repeats: int) -> list[list[str]]:
    """Return one row per candidate: milliseconds, tokens per second, peak memory, ratio."""
    name, inputs, runs = case
    wanted = [values.requires_grad_() for values in inputs.values()]

    def turn(run: Run) -> Callable[[], None]:
        def forward_backward() -> None:
            torch.autograd.grad(run(*wanted).float().sum(), wanted)
            torch.accelerator.synchronize()

        return forward_backward

    turns, failed = {}, {}
    peaks: dict[str, int] = {}
    for label, run in runs.items():
        try:
            turn(run)()
            torch.accelerator.reset_peak_memory_stats()
            turn(run)()
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            failed[label] = str(error).strip().splitlines()[0][:60]
            continue
        turns[label], peaks[label] = turn(run), torch.accelerator.max_memory_allocated()
    seconds = take_turns(turns, repeats=repeats)
    base = seconds.get("chunked")
    rows = []
    for label, taken in seconds.items():
        ratio = f"{base / taken:.1f}" if base else ""
        speed = f"{2 * num_tokens / taken:,.0f}"
        cells = [f"{taken * 1e3:.2f}", speed, f"{peaks[label] / MIB:,.0f}", ratio]
        rows.append([name, str(num_tokens), label, *cells])
    return rows + [[name, str(num_tokens), label, why, "", "", ""] for label, why in failed.items()]


def main() -> None:
    """Print the table, or say in one sentence why there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=15)
    asked = parser.parse_args()
    if not torch.accelerator.is_available():
        raise SystemExit("benchmarks/gpu_ops.py needs a GPU, and torch finds none here.")
    device = torch.accelerator.current_accelerator()
    if obstacle := find_obstacle(device):
        raise SystemExit(f"benchmarks/gpu_ops.py needs Triton: {obstacle}.")
    torch.manual_seed(0)
    gpu = torch.get_device_module(device).get_device_name()
    print(f"{gpu}, bfloat16, forward and backward; {describe_machine()}\n")
    rows = []
    for make in (convolution, scan, duality, delta):
        for num_tokens in asked.tokens:
            rows += measure(make(num_tokens, device), num_tokens, asked.repeats)
    head = ["operator", "T", "form", "ms", "tokens/s", "peak MiB", "times chunked"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
