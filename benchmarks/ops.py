"""Speed of the operators and mixers on this machine, forward and backward, against other forms.

    python benchmarks/ops.py > benchmarks/tables/ops.md

Each table's candidates take turns in one process, and the ratio is between medians. Memory is the
peak of a process of its own. The other forms are the token loop (the definition), a scan by
doubling over the whole row, and transformers' own PyTorch code with the same weights.
"""

import argparse
from collections.abc import Callable, Mapping

import torch
from machine import describe_machine, forget_peak, peak_bytes, run_apart, table, take_turns
from torch import Tensor, nn
from transformers import GraniteMoeHybridConfig
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import (
    GraniteMoeHybridMambaLayer,
)
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule

from hybridize.models.mixers import MixerContext, MixerShape, build_mixer
from hybridize.ops import gated_delta_rule, selective_scan

MIB = 2**20
LENGTHS = (256, 1024, 4096, 16384)
MIXERS = ("mamba1", "mamba2", "gated_delta")


def forward_backward(run: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], None]:
    """Return a function that computes the output and the gradients of all inputs."""
    return lambda: torch.autograd.backward(run().sum(), inputs=inputs)


def scan_by_doubling(
    x_BTD: Tensor, dt_BTD: Tensor, A_DN: Tensor, B_BTGN: Tensor, C_BTGN: Tensor
) -> Tensor:
    """Run the selective scan over whole rows in log2(T) doublings (Hillis and Steele 1986)."""
    share = x_BTD.shape[2] // B_BTGN.shape[2]
    decay_BTDN = torch.exp(dt_BTD[..., None] * A_DN)
    state_BTDN = (dt_BTD * x_BTD)[..., None] * B_BTGN.repeat_interleave(share, 2)
    step = 1
    while step < x_BTD.shape[1]:
        carried_BTDN = decay_BTDN[:, step:] * state_BTDN[:, :-step]
        state_BTDN = torch.cat([state_BTDN[:, :step], state_BTDN[:, step:] + carried_BTDN], 1)
        decay_BTDN = torch.cat(
            [decay_BTDN[:, :step], decay_BTDN[:, step:] * decay_BTDN[:, :-step]], 1
        )
        step *= 2
    return (state_BTDN * C_BTGN.repeat_interleave(share, 2)).sum(-1)


def scan_candidates() -> dict[str, Callable[[], None]]:
    """Mamba-1 at B1 T1024, 256 channels in 16 groups, state 16."""
    torch.manual_seed(0)
    x_BTD, B_BTGN, C_BTGN = (
        torch.randn(1, 1024, 256),
        torch.randn(1, 1024, 16, 16),
        torch.randn(1, 1024, 16, 16),
    )
    dt_BTD, A_DN = 0.1 * torch.rand(1, 1024, 256), -torch.rand(256, 16) - 0.1
    inputs = [tensor.requires_grad_() for tensor in (x_BTD, dt_BTD, A_DN, B_BTGN, C_BTGN)]
    forms = {
        form: forward_backward(
            lambda form=form: selective_scan(*inputs, None, form=form)[0], inputs
        )
        for form in ("auto", "chunked", "reference")
    }
    return {**forms, "doubling": forward_backward(lambda: scan_by_doubling(*inputs), inputs)}


def delta_candidates() -> dict[str, Callable[[], None]]:
    """The gated delta rule at B1 T1024 H8 D64, ours and the PyTorch form of transformers."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1024, 8, 64) for _ in range(3))
    q, k = (nn.functional.normalize(tensor, dim=-1) for tensor in (q, k))
    g, beta = -0.1 * torch.rand(1, 1024, 8), torch.rand(1, 1024, 8)
    inputs = [tensor.requires_grad_() for tensor in (q, k, v, g, beta)]
    ours = {
        form: forward_backward(lambda form=form: gated_delta_rule(*inputs, form=form)[0], inputs)
        for form in ("auto", "chunked", "reference")
    }
    theirs = forward_backward(lambda: torch_chunk_gated_delta_rule(*inputs)[0], inputs)
    return {**ours, "transformers": theirs}


def mamba2_candidates(num_heads: int, head_dim: int) -> dict[str, Callable[[], None]]:
    """A whole Mamba-2 mixer at B2 T1024, ours and transformers' with the same weights."""
    torch.manual_seed(0)
    hidden_size = num_heads * head_dim
    ours = make_mixer("mamba2", num_heads, head_dim)
    config = GraniteMoeHybridConfig(
        hidden_size=hidden_size,
        num_attention_heads=num_heads,
        mamba_n_heads=num_heads,
        mamba_n_groups=num_heads,
        mamba_d_state=head_dim,
        mamba_d_head=head_dim,
        mamba_expand=1,
        mamba_chunk_size=256,
        num_local_experts=0,
        rms_norm_eps=1e-5,
    )
    theirs = GraniteMoeHybridMambaLayer(config, 0)
    theirs.load_state_dict(ours.state_dict())
    hidden_BTD = torch.randn(2, 1024, hidden_size, requires_grad=True)
    context = make_context(hidden_BTD)
    gap = (ours(hidden_BTD, context) - theirs(hidden_BTD)).abs().max().item()
    if gap > 1e-3:
        raise RuntimeError(f"the two mixers differ by {gap:.1e}: their times cannot be compared")
    return {
        name: forward_backward(run, [hidden_BTD, *mixer.parameters()])
        for name, run, mixer in (
            ("ours", lambda: ours(hidden_BTD, context), ours),
            ("transformers", lambda: theirs(hidden_BTD), theirs),
        )
    }


def make_mixer(kind: str, num_heads: int, head_dim: int) -> nn.Module:
    """Build one mixer with random weights."""
    shape = MixerShape(
        hidden_size=num_heads * head_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        norm_eps=1e-5,
    )
    return build_mixer(kind, shape, 0, {})


def make_context(hidden_BTD: Tensor) -> MixerContext:
    """Return the context of plain rows, one document each."""
    positions_BT = torch.arange(hidden_BTD.shape[1]).expand(hidden_BTD.shape[:2])
    nothing = torch.empty(0)
    return MixerContext(positions_BT=positions_BT, rope=(nothing, nothing), masks={})


def mixer_step(kind: str, num_tokens: int) -> Callable[[], None]:
    """One mixer of the shipped teacher's size, forward and backward over one row."""
    torch.manual_seed(0)
    mixer = make_mixer(kind, 4, 32)
    hidden_BTD = torch.randn(1, num_tokens, 128, requires_grad=True)
    context = make_context(hidden_BTD)
    return forward_backward(lambda: mixer(hidden_BTD, context), [hidden_BTD, *mixer.parameters()])


def measure_peak(kind: str, num_tokens: int) -> int:
    """Return the bytes that one training step of a mixer adds at its peak."""
    step = mixer_step(kind, num_tokens)
    before = forget_peak()
    step()
    return peak_bytes() - before


def compare(title: str, candidates: Mapping[str, Callable[[], None]], repeats: int) -> None:
    """Print milliseconds and how many times slower than the first each candidate is."""
    seconds = take_turns(candidates, repeats=repeats)
    first = next(iter(seconds.values()))
    rows = [[name, f"{1e3 * took:.1f}", f"{took / first:.1f}"] for name, took in seconds.items()]
    print(f"\n{title}\n\n{table(['form', 'ms', 'times the first'], rows)}")


def compare_lengths(repeats: int) -> None:
    """Print time and peak memory per token against length, for each mixer."""
    steps = {(kind, length): mixer_step(kind, length) for kind in MIXERS for length in LENGTHS}
    seconds = take_turns(steps, repeats=repeats)  # type: ignore[arg-type]
    rows = []
    for (kind, length), took in seconds.items():
        peak = int(run_apart("--peak", kind, length))
        rows.append(
            [kind, f"{length:,}", f"{1e6 * took / length:.2f}", f"{peak / length / 1024:.1f}"]
        )
    head = ["mixer", "tokens", "microseconds per token", "peak KiB per token"]
    print("\nCost against length, one mixer of width 128, forward and backward\n")
    print(table(head, rows))


def main() -> None:
    """Print the tables, or the peak of one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", nargs=2, metavar=("MIXER", "TOKENS"))
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    if given.peak:
        print(measure_peak(given.peak[0], int(given.peak[1])))
        return
    print(f"{describe_machine()}; float32, forward and backward, medians of {given.repeats}.")
    compare("Selective scan, B1 T1024, 256 channels, state 16", scan_candidates(), given.repeats)
    compare("Gated delta rule, B1 T1024 H8 D64", delta_candidates(), given.repeats)
    for num_heads, head_dim in ((4, 32), (8, 64)):
        title = f"Mamba-2 mixer, B2 T1024, {num_heads} heads of {head_dim}"
        compare(title, mamba2_candidates(num_heads, head_dim), given.repeats)
    compare_lengths(given.repeats)


if __name__ == "__main__":
    main()
