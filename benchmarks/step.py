"""Speed of the distillation step: ours, another version of it, and the plain way.

    OMP_NUM_THREADS=1 python benchmarks/step.py
    OMP_NUM_THREADS=1 python benchmarks/step.py --mixers mamba2 --other ../another-checkout
    OMP_NUM_THREADS=1 python benchmarks/step.py --profile

The shipped teacher, a student with 7 of its 12 layers converted, the same two packed rows of 1,024
tokens for all, reverse KL at the tokens that count, AdamW on all parameters, float32. Each is a
process of its own; they take turns, a step each, and the table has medians.

The plain way is LlamaForCausalLM and, for mamba2, GraniteMoeHybridForCausalLM of transformers, with
the logits of both models for all tokens and KL in a few lines. Its PyTorch form of Mamba-2 knows no
documents, so it runs twice: with `rows` a document sees the ones before it, with `documents` each
is a row of its own, padded.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe_machine, table
from torch.profiler import ProfilerActivity, profile

ROWS, TOKENS, LR = 2, 1024, 1e-4
ENOUGH = 20.0
"""Seconds after which a slow candidate takes no more turns."""
CONVERTED = (1, 4, 5, 7, 8, 9, 10)
MIXERS = ("mamba2", "mamba1", "gated_delta")
PLAIN = "chunked,gated_norm=reference,gated_unit=reference"
ROOT = Path(__file__).parent.parent
TEACHER = ROOT / "hybridize" / "assets" / "teacher"
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention": ("_Attention", "aten::_scaled_dot_product"),
    "recurrence of the mixer": ("_Ssd", "_Scan", "_GatedDeltaRule"),
    "convolution of the mixer": ("_Conv",),
    "norms": ("_Norm", "aten::pow", "aten::rsqrt", "aten::mean", "aten::div"),
    "gates": ("_Unit", "aten::silu", "aten::softplus"),
    "copies": ("aten::cat", "aten::index", "aten::copy_", "aten::_index_put", "aten::fill_"),
    "optimizer": ("aten::_fused_adamw", "aten::linalg_vector_norm"),
    "sums and products of values": ("aten::mul", "aten::add", "aten::sum", "aten::neg"),
}
"""Cost -> how the names of its operations begin, in the profiler of torch."""


def make_rows(path: Path) -> None:
    """Write the rows that every candidate is trained on."""
    from hybridize.models.loading import load_tokenizer
    from hybridize.training.data import TaskRows, batch

    rows = batch(TaskRows(load_tokenizer(TEACHER), sequence_length=TOKENS, seed=17), 0, ROWS)
    torch.save([rows.input_ids_BT, rows.segments_BT, rows.loss_mask_BT], path)


class Given:
    """A source whose rows are those of a file, again and again."""

    sequence_length, rows_per_pass = TOKENS, None
    identity = {"kind": "given"}  # noqa: RUF012

    def __init__(self, path: Path) -> None:
        from hybridize.training.data import Row

        self._rows = [Row(*row) for row in zip(*torch.load(path), strict=True)]

    def row(self, index: int) -> object:
        """Return a row."""
        return self._rows[index % ROWS]


def train_ours(mixer: str, rows: Path, form: str, turn: Callable[[], None]) -> None:
    """Train with whichever version of hybridize is imported; call `turn` between steps."""
    from hybridize.models.model import load
    from hybridize.surgery.apply import convert
    from hybridize.training.loop import fit
    from hybridize.training.objectives import Distillation
    from hybridize.training.optim import OptimizerSettings
    from hybridize.training.settings import FitSettings

    if form:
        from hybridize.ops import forms

        forms.prefer(form)
    teacher = load(str(TEACHER)).network
    student = convert(teacher, teacher.layout.convert(CONVERTED, to=mixer), seed=0)
    settings = FitSettings(
        tokens=ROWS * TOKENS * 10_000,
        tokens_per_step=ROWS * TOKENS,
        rows_per_microbatch=ROWS,
        optimizer=OptimizerSettings(lr=LR),
    )
    fit(student, Distillation(teacher), Given(rows), settings, progress=lambda _: turn())


def train_stock(kind: str, rows: Path, turn: Callable[[], None]) -> None:
    """Train stock classes of transformers; call `turn` between steps."""
    from transformers import GraniteMoeHybridForCausalLM, LlamaForCausalLM

    teacher = LlamaForCausalLM.from_pretrained(TEACHER).eval()
    student = GraniteMoeHybridForCausalLM(_describe_student(teacher.config)).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, betas=(0.9, 0.95))
    ids_BT, mask_BT, counted_BT = _lay_out(kind, *torch.load(rows))
    while True:
        given = {"input_ids": ids_BT, "attention_mask": mask_BT}
        with torch.no_grad():
            teacher_BTV = teacher(**given, use_cache=False).logits.log_softmax(-1)
        student_BTV = student(**given, use_cache=False).logits.log_softmax(-1)
        nats_BT = (student_BTV.exp() * (student_BTV - teacher_BTV)).sum(-1)
        loss = (nats_BT[:, :-1] * counted_BT[:, 1:]).sum() / counted_BT[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turn()


def _describe_student(teacher: object) -> object:
    """Return the stock configuration of the same layout: sizes and parameters are ours."""
    from transformers import GraniteMoeHybridConfig

    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps")
    same += ("num_attention_heads", "num_key_value_heads", "tie_word_embeddings", "rope_parameters")
    width, heads = teacher.head_dim, teacher.num_attention_heads
    layers = ["mamba" if n in CONVERTED else "attention" for n in range(teacher.num_hidden_layers)]
    return GraniteMoeHybridConfig(
        **{name: getattr(teacher, name) for name in same},
        **{"shared_intermediate_size": teacher.intermediate_size, "layer_types": layers},
        **{"num_local_experts": 0, "num_experts_per_tok": 0, "position_embedding_type": "rope"},
        **{"mamba_n_heads": heads, "mamba_n_groups": heads, "mamba_d_head": width},
        **{"mamba_d_state": width, "mamba_expand": 1, "attention_multiplier": width**-0.5},
    )


def _lay_out(
    kind: str, ids_BT: torch.Tensor, segments_BT: torch.Tensor, counted_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if kind == "rows":
        return ids_BT, (segments_BT != 0).long(), counted_BT
    parts = [
        (ids_T[segments_T == n], counted_T[segments_T == n])
        for ids_T, segments_T, counted_T in zip(ids_BT, segments_BT, counted_BT, strict=True)
        for n in range(1, int(segments_T.max()) + 1)
    ]
    pad = torch.nn.utils.rnn.pad_sequence
    ids, counted = zip(*parts, strict=True)
    mask = [torch.ones_like(each) for each in ids]
    return pad(ids, True), pad(mask, True), pad(counted, True)


def work(name: str, mixer: str, rows: Path) -> None:
    """Be a candidate: make one step for each line that is read, and print its seconds."""
    started = 0.0

    def turn() -> None:
        nonlocal started
        print(time.perf_counter() - started, flush=True)
        if not sys.stdin.readline():
            sys.exit()
        started = time.perf_counter()

    if name.startswith("stock"):
        train_stock(name.split()[-1], rows, turn)
    train_ours(mixer, rows, PLAIN if "plain" in name else "", turn)


def compare(mixer: str, rows: Path, other: str | None, repeats: int) -> list[list[str]]:
    """Let candidates take turns; return a line of the table for each."""
    names = ["ours", "ours, plain PyTorch"]
    names += ["other version"] if other and mixer != "gated_delta" else []
    names += ["stock, rows", "stock, documents"] if mixer == "mamba2" else []
    running = {}
    for name in names:
        command = [sys.executable, __file__, "--work", name, "--mixers", mixer, "--rows", str(rows)]
        found = other if name == "other version" else ROOT
        own = {**os.environ, "PYTHONPATH": str(found)}
        running[name] = subprocess.Popen(
            command, env=own, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        _read(running[name])
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 2):
        for name, process in running.items():
            if sum(seconds[name]) > ENOUGH:
                continue
            process.stdin.write("go\n")
            process.stdin.flush()
            taken = _read(process)
            if turn >= 2:
                seconds[name].append(taken)
    for process in running.values():
        process.stdin.close()
        process.wait()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        [mixer, name, f"{1000 * s:.0f}", f"{ROWS * TOKENS / s:,.0f}", f"{s / medians['ours']:.2f}"]
        for name, s in medians.items()
    ]


def _read(process: subprocess.Popen) -> float:
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a candidate ended; what it said stands above")
    return float(line)


def show_costs(mixer: str, rows: Path, form: str, steps: int) -> str:
    """Profile steps of ours; return a table of what they cost."""
    profiler = profile(activities=[ProfilerActivity.CPU])
    made = 0

    def turn() -> None:
        nonlocal made
        made += 1
        if made == 3:
            profiler.start()
        if made == 3 + steps:
            profiler.stop()
            raise StopIteration

    with contextlib.suppress(StopIteration):
        train_ours(mixer, rows, form, turn)
    costs = dict.fromkeys([*KINDS, "everything else"], 0.0)
    for event in profiler.key_averages():
        kind = next((k for k, names in KINDS.items() if event.key.startswith(names)), None)
        costs[kind or "everything else"] += event.self_cpu_time_total / 1000 / steps
    total = sum(costs.values())
    ranked = sorted(costs.items(), key=lambda cost: -cost[1])
    lines = [(name, f"{each:.0f}", f"{100 * each / total:.1f} %") for name, each in ranked]
    return table((f"cost of a step with {mixer}", "ms", "share"), lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixers", nargs="+", default=MIXERS)
    parser.add_argument("--other", help="a checkout of another version of this repository")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    if given.work:
        return work(given.work, given.mixers[0], Path(given.rows))
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.pt"
        make_rows(rows)
        print(f"{describe_machine()}; {ROWS} x {TOKENS} tokens, float32\n")
        if given.profile:
            print("\n\n".join(show_costs(mixer, rows, "", 6) for mixer in given.mixers))
            return None
        lines = [
            line
            for mixer in given.mixers
            for line in compare(mixer, rows, given.other, given.repeats)
        ]
    print(table(("mixer", "candidate", "ms a step", "tokens a second", "times ours"), lines))
    return None


if __name__ == "__main__":
    main()
