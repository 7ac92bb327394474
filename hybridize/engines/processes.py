"""What the system says of a process and those it started: memory, from /proc."""

from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


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


def _children(pid: int) -> Iterator[int]:
    """Yield the children of every thread of a process."""
    for task in PROC.glob(f"{pid}/task/*/children"):
        try:
            yield from map(int, task.read_text().split())
        except OSError:
            continue


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
