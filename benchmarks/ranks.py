"""What each rank holds and how long a step takes when a run is split over processes.

    OMP_NUM_THREADS=1 python benchmarks/ranks.py 1 2

starts torchrun with each number of processes and prints a line for each: distillation of the
shipped teacher into a student with every other layer converted, on the CPU, over gloo. Two
processes on two cores have twice the cores of one; the bytes are exact, the seconds are not on a
busy machine.
"""

import statistics
import subprocess
import sys

import torch
from torch.distributed.tensor import DTensor

from hybridize.core.settings import read_settings
from hybridize.models.loading import load_tokenizer
from hybridize.models.model import load
from hybridize.pipeline.training import share
from hybridize.surgery.apply import convert
from hybridize.training.data import TaskRows
from hybridize.training.device import process_group
from hybridize.training.distributed import Ranks
from hybridize.training.loop import fit
from hybridize.training.objectives import Distillation
from hybridize.training.settings import FitSettings

TOKENS_PER_STEP, LENGTH, STEPS = 8192, 512, 5


def held_bytes(model: torch.nn.Module) -> int:
    """Count the bytes of the weights that this process holds between steps."""
    values = (p.to_local() if isinstance(p, DTensor) else p for p in model.parameters())
    return sum(value.numel() * value.element_size() for value in values)


def measure(device: torch.device) -> None:
    """Train a few steps and print what was seen."""
    torch.set_num_threads(1)
    ranks = Ranks.world() if torch.distributed.is_initialized() else Ranks()
    whole_teacher = load("shipped").network.requires_grad_(False)
    odd = range(1, whole_teacher.layout.num_layers, 2)
    whole = convert(whole_teacher, whole_teacher.layout.convert(odd, to="mamba2"))
    student, teacher = whole, whole_teacher
    if ranks.size > 1:
        first = ranks.is_first
        student = share(whole if first else None, device, widen=True)
        teacher = share(whole_teacher if first else None, device, widen=False)
    mebibytes = held_bytes(student) / 2**20, held_bytes(teacher) / 2**20
    source = TaskRows(load_tokenizer("shipped"), sequence_length=LENGTH, seed=0)
    records: list[float] = []
    losses: list[float] = []

    def note(record) -> None:  # type: ignore[no-untyped-def]
        records.append(TOKENS_PER_STEP / record.tokens_per_second)
        losses.append(record.loss)

    settings = FitSettings(
        tokens=STEPS * TOKENS_PER_STEP, tokens_per_step=TOKENS_PER_STEP, rows_per_microbatch=4
    )
    fit(student, Distillation(teacher), source, settings, progress=note)
    if ranks.is_first:
        print(
            f"{ranks.size} ranks: student {mebibytes[0]:.2f} MiB a rank, teacher "
            f"{mebibytes[1]:.2f} MiB a rank, {statistics.median(records[1:]):.2f} s a step, "
            f"losses {' '.join(f'{loss:.7f}' for loss in losses)}"
        )


def main() -> None:
    """Start the processes, or be one of them."""
    processes = read_settings()
    if processes.num_ranks > 1:
        with process_group("cpu", processes.local_rank) as device:
            measure(device)
        return
    for number in sys.argv[1:]:
        if number == "1":
            measure(torch.device("cpu"))
            continue
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", number]
        subprocess.run([*command, __file__], check=True)


if __name__ == "__main__":
    main()
