"""Checkpoints inside a run: written whole or not at all, verified when read, without pickles.

A checkpoint is a folder `checkpoint/step-<number>` with tensors in safetensors and the rest,
checksums included, in `state.json`. The one with the highest number counts; it replaces the one
before only after it stands on the disk.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from hybridize.core.artifacts import changed_keys, hash_file, read_json, write_json
from hybridize.core.errors import MachineError, RunError
from hybridize.training.device import random_state, set_random_state
from hybridize.training.distributed import Ranks
from hybridize.training.optim import Optimizers
from hybridize.training.shards import list_names, read_shards, write_shards

STATE = "state.json"


def save(
    folder: Path,
    groups: Mapping[str, Mapping[str, Tensor]],
    state: dict[str, Any],
    ranks: Ranks | None = None,
) -> None:
    """Write a checkpoint of `state["step"]` and remove the ones before.

    Args:
        groups: name -> tensors by name; each group becomes one safetensors file. Where there are
            several ranks, each writes a file with its rows of all tensors.

    Raises:
        MachineError: the disk is full or refuses; the checkpoint before still stands.
    """
    ranks = ranks or Ranks()
    final = folder / f"step-{state['step']:08d}"
    partial = folder / f"partial-{state['step']:08d}"
    checksums: dict[str, str] = {}
    with ranks.together(), _explained(final):
        if ranks.is_first:
            _remove(partial)
            partial.mkdir(parents=True)
    with ranks.together(), _explained(final):
        if ranks.size > 1:
            write_shards(
                partial, {name: t for group in groups.values() for name, t in group.items()}
            )
        else:
            _write_groups(partial, groups)
    with ranks.together(), _explained(final):
        checksums = {file.name: hash_file(file) for file in _share(partial, ranks)}
    for part in ranks.gather(checksums):
        checksums |= part
    with ranks.together(), _explained(final):
        if ranks.is_first:
            write_json(partial / STATE, {**state, "checksums": checksums})
            _sync(partial)
            partial.rename(final)
            _sync(folder)
            for other in folder.iterdir():
                if other != final:
                    _remove(other)


def read_weights(folder: Path, model: nn.Module) -> int:
    """Put the trained weights of a checkpoint into a whole model; return the step it was kept at.

    Args:
        folder: a folder of checkpoints, of which the latest counts, or one of them.

    Raises:
        RunError: there is none, it is damaged, or of another model.
    """
    latest = folder if (folder / STATE).exists() else find_latest(folder)
    if latest is None:
        raise RunError(f"{folder} holds no checkpoint. Give a folder with step-... in it.")
    state = _read_state(latest)
    verify(latest, state["checksums"])
    tensors = dict(chain(model.named_parameters(), model.named_buffers()))
    shapes = {
        name: list(tensors[name].shape) for name in tensors.keys() & state["what"]["tensors"].keys()
    }
    if shapes != state["what"]["tensors"]:
        raise RunError(f"checkpoint {latest} is of another model: its tensors differ.")
    read_shards(latest, {name: tensors[name] for name in shapes}, Ranks())
    return int(state["step"])


def find_latest(folder: Path) -> Path | None:
    """Return the checkpoint that counts; None where there is none."""
    return max(folder.glob("step-*"), default=None)


def verify(checkpoint: Path, checksums: Mapping[str, str]) -> None:
    """Check that files are what was written.

    Raises:
        RunError: one is missing or differs.
    """
    for name, checksum in checksums.items():
        file = checkpoint / name
        if not file.exists() or hash_file(file) != checksum:
            raise _damaged(file)


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
        self._folder, self._parameters, self._optimizers = folder, parameters, optimizers
        self._tensors = {**parameters, **buffers}
        self._device, self._ranks = next(model.parameters()).device, Ranks.of(model)
        shapes = {name: list(value.shape) for name, value in self._tensors.items()}
        self._what = {**what, "tensors": shapes}

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep the run as it stands; `state` holds plain values and its `step`."""
        groups = {
            "model": self._tensors,
            "optimizer": self._optimizers.tensors(),
            "random": self._name(random_state(self._device)),
        }
        save(self._folder, groups, {**state, "what": self._what}, self._ranks)

    @torch.no_grad()
    def resume(self) -> dict[str, Any] | None:
        """Put the kept run back into model, optimizers and random numbers; return its state.

        The run may have been kept by another number of ranks. Returns None where nothing is kept.

        Raises:
            RunError: the checkpoint is damaged, or of a run with other settings or data.
        """
        ranks, latest, state = self._ranks, None, dict[str, Any]()
        with ranks.together():
            if ranks.is_first and (latest := find_latest(self._folder)):
                state = _read_state(latest)
        latest, state = ranks.broadcast((latest, state))
        if latest is None:
            return None
        checksums = list(state.pop("checksums").items())
        with ranks.together():
            verify(latest, dict(checksums[ranks.rank :: ranks.size]))
        changes = changed_keys(state.pop("what"), self._what)
        if changes:
            key, old, new = changes[0]
            raise RunError(
                f"checkpoint {self._folder} is of another run. {key}: {old} -> {new}. "
                "Put the old value back to continue it, or remove the folder to start again."
            )
        self._read(latest)
        return state

    def _read(self, checkpoint: Path) -> None:
        """Read what is kept into tensors of the same names, split or whole."""
        names = list_names(checkpoint)
        optimizer = {
            name: torch.zeros(()) if name.endswith("/step") else torch.zeros_like(parameter)
            for parameter_name, parameter in self._parameters.items()
            for name in names
            if name.rpartition("/")[0] == parameter_name
        }
        random = self._name(random_state(self._device))
        random = {name: value for name, value in random.items() if name in names}
        read_shards(checkpoint, {**self._tensors, **optimizer, **random}, self._ranks)
        self._optimizers.load(optimizer)
        if random:
            states = {name.partition("-")[0]: value for name, value in random.items()}
            set_random_state(self._device, states)

    def _name(self, random: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name the random state of a rank; a rank that was not there before has none to read."""
        rank = self._ranks.rank
        return {f"{name}-{rank}" if rank else name: value for name, value in random.items()}


def _read_state(checkpoint: Path) -> dict[str, Any]:
    try:
        return dict(read_json(checkpoint / STATE))
    except (RunError, TypeError, ValueError) as error:
        raise _damaged(checkpoint / STATE) from error


def _damaged(file: Path) -> RunError:
    return RunError(
        f"checkpoint {file} is damaged: it is not what was written. "
        f"Remove {file.parent.parent} to train again from the start."
    )


def _write_groups(folder: Path, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    for name, tensors in groups.items():
        file = folder / f"{name}.safetensors"
        save_file({key: value.detach().contiguous() for key, value in tensors.items()}, file)
        _sync(file)


def _share(folder: Path, ranks: Ranks) -> list[Path]:
    """Return the files that this rank looks after."""
    return sorted(folder.glob("*.safetensors"))[ranks.rank :: ranks.size]


@contextmanager
def _explained(final: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise MachineError(
            f"checkpoint {final} could not be written ({error}). The one before still stands: "
            "make room and run again."
        ) from error


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
