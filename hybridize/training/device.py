"""Devices, precision, random state and memory; the only file that says "cuda"."""

import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from hybridize.core.errors import MachineError

MINUTES_WITHOUT_WORD = 30
"""A rank that waits longer than this for another, in the middle of common work, gives up."""


def choose_device(name: str | None = None) -> torch.device:
    """Return the named device, or the best present one if None.

    Raises:
        MachineError: this machine has no such device.
    """
    present = [*_accelerators(), "cpu"]
    if name is None:
        return torch.device(present[0])
    kind = name.partition(":")[0]
    if kind not in present:
        raise MachineError(
            f"device {name!r} is not there (present: {', '.join(present)}). "
            "Choose one of those, or install the torch build for it."
        )
    return torch.device(name)


@contextmanager
def process_group(
    name: str | None, place: int, *, timeout_minutes: float = MINUTES_WITHOUT_WORD
) -> Iterator[torch.device]:
    """Join the other processes that torchrun started; yield the device of this one.

    Values and files are agreed on through the processors (gloo), tensors on accelerators through
    what is made for them (nccl).

    Args:
        name: kind of device, the best present one if None.
        place: number of this process on its machine, which chooses among devices of a kind.
        timeout_minutes: of any common work; after it a rank that waits for a dead one ends.
    """
    device = choose_device(name)
    backend = "gloo"
    if device.type == "cuda":
        device = torch.device("cuda", place)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    yield device
    dist.destroy_process_group()


def precision(device: torch.device, dtype: str) -> AbstractContextManager[object]:
    """Return the context to compute in: plain float32, or bfloat16 products under autocast."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, dtype))


def peak_gib(device: torch.device) -> float:
    """Return the most memory held so far: on the device, or by the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's random numbers inside, and give the caller its own back afterwards."""
    before = random_state(device)
    try:
        torch.manual_seed(seed)
        yield
    finally:
        set_random_state(device, before)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of torch's random numbers on the CPU and on the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["device"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(device: torch.device, states: dict[str, Tensor]) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "device" in states:
        torch.cuda.set_rng_state(states["device"], device)


def _accelerators() -> list[str]:
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [name for name, present in found.items() if present]
