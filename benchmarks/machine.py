"""What every benchmark shares: naming the machine, taking turns, medians, tables, peak memory."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch


def describe_machine() -> str:
    """Say in one line what the numbers were measured on."""
    cores = len(os.sched_getaffinity(0))
    return (
        f"{find_processor()}, {cores} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def find_processor() -> str:
    """Return the name of the processor, with the widest vectors that it has."""
    name, wide = platform.machine(), ""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            if key.strip() == "flags":
                flags = value.split()
                wide = next((flag for flag in ("avx512f", "avx2") if flag in flags), "")
    except OSError:
        pass
    return f"{name} ({wide})" if wide else name


def take_turns(
    candidates: Mapping[str, Callable[[], object]], *, repeats: int = 7
) -> dict[str, float]:
    """Return the median seconds of each candidate, run in turns so that drift hits all alike."""
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def peak_bytes() -> int:
    """Return the most memory this process has held since `forget_peak`, in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")


def forget_peak() -> int:
    """Start the peak anew; return what is held at this moment, in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return peak_bytes()


def run_apart(*arguments: object) -> str:
    """Run the calling script again in a process of its own; return the last line it prints."""
    command = [sys.executable, sys.argv[0], *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1]
