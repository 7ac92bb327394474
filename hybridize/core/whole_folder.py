"""A folder that is written whole or not at all: readers never see half of one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybridize.core.errors import MachineError
from hybridize.core.quantities import short_bytes


@contextmanager
def whole_folder(folder: Path | str, *, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield a hidden folder beside `folder` that takes its place when the block ends well.

    Write the file last that readers ask for first, so that even the hidden folder of a killed
    process does not look complete.

    Args:
        folder: replaced as a whole if it exists; kept as it is when the block raises.
        needed_bytes: refuse at once where the disk has less room than that.

    Raises:
        MachineError: the disk is full or refuses.
    """
    folder = Path(folder)
    fresh, stale = (folder.with_name(f".{folder.name}.{word}") for word in ("writing", "replaced"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if stale.exists() and not folder.exists():
            stale.rename(folder)  # a process was killed between the two renames below
        for leftover in (fresh, stale):
            shutil.rmtree(leftover, ignore_errors=True)
        _check_room(folder, needed_bytes)
        fresh.mkdir()
        yield fresh
        _flush(fresh)
        if folder.exists():
            folder.rename(stale)
        fresh.rename(folder)
    except OSError as error:
        raise MachineError(
            f"{folder} could not be written ({error.strerror or error}). "
            "Make room, or choose another folder."
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(stale, ignore_errors=True)


def _check_room(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if needed_bytes > free:
        raise MachineError(
            f"{folder} needs {short_bytes(needed_bytes)}, but the disk has {short_bytes(free)} "
            "left. Make room, or choose another folder."
        )


def _flush(folder: Path) -> None:
    """Wait until the disk holds every file, so that a crash cannot leave a whole name to half."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
