"""Speed of a distillation step of a student, with the forms of operators that run and without.

    python benchmarks/step.py runs/tiny-full/stages/04-h10/model
    python benchmarks/step.py runs/tiny-full/stages/04-h10/model --dtype bfloat16 --threads 2

Both candidates take turns in one process on one microbatch of two packed rows; the ratio is between
medians. The slower one computes everything in plain PyTorch, as without a compiler.
"""

import argparse
from functools import partial

import torch
from machine import describe_machine, table, take_turns

from hybridize.models.model import load
from hybridize.ops import forms
from hybridize.training.data import TaskRows, batch
from hybridize.training.device import precision
from hybridize.training.objectives import Distillation

ROWS, TOKENS = 2, 1024


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("student")
    parser.add_argument("--teacher", default="shipped")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    teacher, student = load(chosen.teacher), load(chosen.student).network.train()
    rows = batch(TaskRows(teacher.tokenizer, sequence_length=TOKENS, seed=17), 0, ROWS)
    objective = Distillation(teacher.network)

    def step(preferred: str | None) -> None:
        forms.prefer(preferred)
        with precision(torch.device("cpu"), chosen.dtype):
            loss = objective(student, rows)
        torch.autograd.backward(loss.total / loss.count)
        student.zero_grad()

    plain = "chunked,gated_norm=reference"
    seconds = take_turns({"plain PyTorch": partial(step, plain), "automatic": partial(step, None)})
    slowest = seconds["plain PyTorch"]
    print(f"{describe_machine()}; {chosen.student}, {ROWS} x {TOKENS} tokens, {chosen.dtype}\n")
    lines = [
        (name, f"{1000 * each:.0f}", f"{ROWS * TOKENS / each:,.0f}", f"{slowest / each:.2f}")
        for name, each in seconds.items()
    ]
    print(table(("forms", "ms a step", "tokens a second", "times plain"), lines))


if __name__ == "__main__":
    main()
