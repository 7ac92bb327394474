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

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hybridize.core.artifacts import changed_keys, hash_file, read_json, write_json
from hybridize.core.errors import MachineError, RunError
from hybridize.training.device import random_state, set_random_state
from hybridize.training.optim import Optimizers

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


class RunCheckpoint:
    """All of a training run that a continuation needs, and where it is kept."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        optimizers: Optimizers,
        what: Mapping[str, Any],
    ) -> None:
        """Name the parts: parameters that are not trained are not kept.

        Args:
            what: settings and data that must be the same in a continuation.
        """
        kept = model.state_dict().keys()
        buffers = {name: value for name, value in model.named_buffers() if name in kept}
        self._folder, self._optimizers = folder, optimizers
        self._tensors = {**parameters, **buffers}
        self._device = next(model.parameters()).device
        shapes = {name: list(value.shape) for name, value in self._tensors.items()}
        self._what = {**what, "tensors": shapes}

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep the run as it stands; `state` holds plain values and its `step`."""
        groups = {
            "model": self._tensors,
            "optimizer": self._optimizers.tensors(),
            "random": random_state(self._device),
        }
        save(self._folder, groups, {**state, "what": self._what})

    @torch.no_grad()
    def resume(self) -> dict[str, Any] | None:
        """Put the kept run back into model, optimizers and random numbers; return its state.

        Returns None where nothing is kept.

        Raises:
            RunError: the checkpoint is damaged, or of a run with other settings or data.
        """
        saved = load(self._folder)
        if saved is None:
            return None
        groups, state = saved
        changes = changed_keys(state.pop("what"), self._what)
        if changes:
            key, old, new = changes[0]
            raise RunError(
                f"checkpoint {self._folder} is of another run. {key}: {old} -> {new}. "
                "Put the old value back to continue it, or remove the folder to start again."
            )
        for name, value in groups["model"].items():
            self._tensors[name].copy_(value)
        self._optimizers.load(groups["optimizer"])
        set_random_state(self._device, groups["random"])
        return state


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
