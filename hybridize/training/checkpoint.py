"""Checkpoints inside a run: written whole or not at all, verified when read, without pickles.

A checkpoint is a folder `checkpoint/step-<number>` with tensors in safetensors and the rest,
checksums included, in `state.json`. The one with the highest number counts; it replaces the one
before only after it stands on the disk.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from hybridize.core.artifacts import hash_file, read_json, write_json
from hybridize.core.errors import MachineError, RunError

STATE = "state.json"


def save(folder: Path, groups: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]) -> None:
    """Write a checkpoint of `state["step"]` and remove the ones before.

    Args:
        groups: name -> tensors by name; each group becomes one safetensors file.

    Raises:
        MachineError: the disk is full or refuses; the checkpoint before still stands.
    """
    final = folder / f"step-{state['step']:08d}"
    partial = folder / f"partial-{state['step']:08d}"
    try:
        _remove(partial)
        partial.mkdir(parents=True)
        checksums = {}
        for name, tensors in groups.items():
            file = partial / f"{name}.safetensors"
            save_file({key: value.detach().contiguous() for key, value in tensors.items()}, file)
            _sync(file)
            checksums[file.name] = hash_file(file)
        write_json(partial / STATE, {**state, "checksums": checksums})
        _sync(partial)
        _remove(final)
        partial.rename(final)
        _sync(folder)
        for other in folder.iterdir():
            if other != final:
                _remove(other)
    except OSError as error:
        raise MachineError(
            f"checkpoint {final} could not be written ({error}). The one before still stands: "
            "make room and run again."
        ) from error


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Read the latest checkpoint as `save` was given it; None where there is none.

    Raises:
        RunError: a file of it is missing or not what was written.
    """
    found = sorted(folder.glob("step-*"))
    if not found:
        return None
    state = read_json(found[-1] / STATE)
    groups = {}
    for name, checksum in state.pop("checksums").items():
        file = found[-1] / name
        if not file.exists() or hash_file(file) != checksum:
            raise RunError(
                f"checkpoint {file} is damaged: it is not what was written. "
                f"Remove {folder} to train again from the start."
            )
        groups[file.stem] = load_file(file)
    return groups, state


def remove(folder: Path) -> None:
    """Remove all checkpoints, for when the result they led to is written."""
    _remove(folder)


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
