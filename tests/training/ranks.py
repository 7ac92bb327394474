"""Trains tiny models by however many processes torchrun starts: `-m tests.training.ranks JOBS`."""

import json
import os
import resource
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from hybridize.core.errors import HybridizeError, RunError
from hybridize.core.settings import read_settings
from hybridize.training.device import process_group
from hybridize.training.distributed import gather_weights, shard
from hybridize.training.loop import fit
from hybridize.training.objectives import Distillation, LossSum
from hybridize.training.optim import OptimizerSettings, ScheduleSettings
from hybridize.training.settings import FitSettings, Heldout
from tests.training.tiny import RandomRows, TinyModel

ROW, STEPS = 16, 6


class OddModel(TinyModel):
    """Thirteen rows in most tensors and one in one, so that shares differ and one rank has none."""

    def __init__(self, seed):
        super().__init__(seed, width=13)
        self.scale = nn.Parameter(torch.ones(1))

    def hidden(self, input_ids, segments=None):
        return super().hidden(input_ids, segments) * self.scale


class Watched(Distillation):
    """Makes the loss of one row not a number, or kills its process at one row."""

    def __init__(self, teacher, loss=None, poison=None, deadly=None):
        super().__init__(teacher, loss)
        self.poison, self.deadly = poison, deadly

    def __call__(self, model, rows):
        held = range(rows.first_row, rows.first_row + len(rows.input_ids_BT))
        if model.training and self.deadly in held:
            os.kill(os.getpid(), signal.SIGKILL)
        loss = super().__call__(model, rows)
        if self.poison in held:
            return LossSum(loss.total * float("nan"), loss.count, loss.parts)
        return loss


class Rows(RandomRows):
    """Rows of which one cannot be read where it is asked for."""

    def __init__(self, missing=None):
        super().__init__()
        self.missing = missing

    def row(self, index):
        if index == self.missing:
            raise RunError(f"row {index} cannot be read.")
        return super().row(index)


class FullDisk:
    """Lets no file of one rank grow beyond a size after the third step, as on a full disk."""

    def __init__(self, rank, num_bytes):
        self.is_here, self.num_bytes = read_settings().rank == rank, num_bytes
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def __call__(self, record):
        if self.is_here and record.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, self.before[1]))

    def end(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def make_settings(optimizer, **changes):
    """Five rows a step, two at a time, and four in the last step: shares and counts differ."""
    return FitSettings(
        tokens=(STEPS * 5 - 1) * ROW,
        tokens_per_step=5 * ROW,
        rows_per_microbatch=2,
        optimizer=OptimizerSettings(name=optimizer, lr=1e-2),
        schedule=ScheduleSettings(name="cosine"),
        evaluate_every=10 * ROW,
        checkpoint_every=10 * ROW,
        **changes,
    )


def train(
    model,
    teacher,
    out,
    *,
    optimizer="adamw",
    stop_after=None,
    watch=None,
    missing=None,
    backend=None,
    full=(-1, 0),
    **changes,
):
    """Train as one job says; return the error that ended it, if any."""
    asked = iter(range(1, STEPS + 1))
    disk = FullDisk(*full)
    if backend is not None:
        counter, before = CompileCounterWithBackend(backend), torch.compile
        torch.compile = partial(before, backend=counter)
    try:
        fit(
            model,
            Watched(teacher, **(watch or {})),
            Rows(missing),
            make_settings(optimizer, **changes),
            Path(out),
            heldout=Heldout(source=RandomRows(seed=9), tokens=7 * ROW),
            progress=disk,
            stop=lambda: next(asked) == stop_after,
        )
    except HybridizeError as error:
        return error
    finally:
        disk.end()
        if backend is not None:
            torch.compile = before
            Path(f"{out}.graphs.{read_settings().rank}").write_text(str(counter.frame_count))
    return None


def main(jobs):
    torch.set_num_threads(1)
    device = torch.device("cpu")
    is_first = read_settings().rank == 0
    with process_group("cpu", 0, timeout_minutes=0.5):
        for out, job in jobs.items():
            networks = []
            for seed in (1, 2):
                whole = OddModel(seed) if is_first else None
                networks.append(OddModel(seed).to("meta").requires_grad_(seed == 1))
                shard(networks[-1], whole, device, widen=seed == 1)
            error = train(*networks, out, **job)
            weights = gather_weights(networks[0], OddModel(1) if is_first else None)
            Path(f"{out}.{read_settings().rank}").write_text(f"{error}")
            if weights is not None:
                save_file(weights, Path(out) / "weights.safetensors")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
