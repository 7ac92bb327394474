"""What the system says of a process and those it started: memory and time; and their end."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

PROC = Path("/proc")
_SET_PARENT_DEATH_SIGNAL = 1
"""Of prctl(2)."""


def list_tree(pid: int) -> list[int]:
    """List a process and all that descend from it; those that end meanwhile are left out."""
    return [pid, *(below for child in _children(pid) for below in list_tree(child))]


def memory_bytes(pid: int) -> int:
    """Return the memory that a process and its descendants hold; shared pages are shared out.

    0 where the system has no /proc or the process is gone.
    """
    return sum(
        _read_kib(PROC / str(one) / "smaps_rollup", "Pss")
        or _read_kib(PROC / str(one) / "status", "VmRSS")
        for one in list_tree(pid)
    )


def peak_memory_bytes(pid: int) -> int:
    """Return the most memory that a process held, and each descendant, added up.

    An upper bound where several processes share pages or peak at different times; 0 where the
    system has no /proc.
    """
    return sum(_read_kib(PROC / str(one) / "status", "VmHWM") for one in list_tree(pid))


def reset_peak_memory(pid: int) -> None:
    """Begin anew to note the most memory of a process and its descendants, where that is allowed.

    Where it is not, the peak is that since each began.
    """
    for one in list_tree(pid):
        try:
            (PROC / str(one) / "clear_refs").write_text("5")
        except OSError:
            continue


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process, its threads and its descendants have had so far.

    The system's work for them is counted too. 0 where the system has no /proc.
    """
    return sum(map(_read_processor_seconds, list_tree(pid)))


def make_end_with_parent() -> Callable[[], None] | None:
    """Return what a fresh process calls to be ended when this one is killed; None but on Linux.

    A server that outlives who started it would keep its memory and its port for ever.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def end_with_parent() -> None:
        prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGTERM), 0, 0, 0)

    return end_with_parent


def _children(pid: int) -> Iterator[int]:
    """Yield the children of every thread of a process."""
    for task in PROC.glob(f"{pid}/task/*/children"):
        try:
            yield from map(int, task.read_text().split())
        except OSError:
            continue


def _read_processor_seconds(pid: int) -> float:
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    in_program, in_system = fields[11:13]
    return (int(in_program) + int(in_system)) / os.sysconf("SC_CLK_TCK")


def _read_kib(path: Path, key: str) -> int:
    """Return the bytes that a line `key: N kB` says; 0 where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return 0
