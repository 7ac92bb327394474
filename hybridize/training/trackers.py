"""Metrics to TensorBoard, W&B or Trackio: copies of metrics.jsonl, which is the truth.

A tracker that fails is warned about and left, because no run may be lost for a picture of it.
Steps are told by their tokens, the x axis of every figure.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from hybridize.training.metrics import Progress, StepRecord

PROJECT = "hybridize"


class Sink(Protocol):
    """Where the numbers of a step go."""

    def write(self, numbers: dict[str, float], tokens: int) -> None:
        """Write the numbers of the step that ends at so many tokens."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in `out`/tensorboard; steps that are run again take the place of the old."""

    def __init__(self, name: str, out: Path) -> None:
        self._folder, self._writer = out / "tensorboard", None

    def write(self, numbers: dict[str, float], tokens: int) -> None:
        """Add a point to the curve of each number."""
        if self._writer is None:
            module: Any = import_module("torch.utils.tensorboard")
            self._writer = module.SummaryWriter(str(self._folder), purge_step=tokens)
        writer: Any = self._writer
        for key, value in numbers.items():
            writer.add_scalar(key, value, tokens)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


class Wandb:
    """A run of Weights & Biases, continued by an id that follows from the folder."""

    def __init__(self, name: str, out: Path) -> None:
        wandb: Any = import_module("wandb")
        out.mkdir(parents=True, exist_ok=True)
        key = sha256(str(out.resolve()).encode()).hexdigest()[:16]
        self._run = wandb.init(project=PROJECT, name=name, id=key, resume="allow", dir=str(out))

    def write(self, numbers: dict[str, float], tokens: int) -> None:
        """Log the numbers; W&B itself passes over steps that it has."""
        self._run.log(numbers, step=tokens)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class Trackio:
    """A run of Trackio, in its own folder; a continued one goes on under its name."""

    def __init__(self, name: str, out: Path) -> None:
        self._trackio: Any = import_module("trackio")
        self._trackio.init(project=PROJECT, name=name, resume="allow")

    def write(self, numbers: dict[str, float], tokens: int) -> None:
        """Log the numbers."""
        self._trackio.log(numbers, step=tokens)

    def close(self) -> None:
        """End the run."""
        self._trackio.finish()


SINKS: dict[str, Callable[[str, Path], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}
"""Name in a recipe -> sink of a run's name and folder."""


@contextmanager
def tracked(names: Sequence[str], name: str, out: Path) -> Iterator[Progress]:
    """Open sinks and yield a `progress` that feeds them; close them at the end.

    Args:
        names: keys of `SINKS`.
        name: what the run is called there, such as `tiny-h6`.
        out: folder of the run.
    """
    sinks: dict[str, Sink] = {}
    for key in names:
        with _forgiven(sinks, key):
            sinks[key] = SINKS[key](name, out)

    def write(record: StepRecord) -> None:
        numbers = list_numbers(record)
        for key, sink in tuple(sinks.items()):
            with _forgiven(sinks, key):
                sink.write(numbers, record.tokens)

    try:
        yield write
    finally:
        for key, sink in tuple(sinks.items()):
            with _forgiven(sinks, key):
                sink.close()


def list_numbers(record: StepRecord) -> dict[str, float]:
    """Return the numbers of a step by name; those inside others as `parts/reverse_kl`."""
    numbers: dict[str, float] = {}
    for key, value in record.line().items():
        if isinstance(value, dict) and key != "left_out":
            numbers |= {f"{key}/{part}": number for part, number in value.items()}
        elif isinstance(value, int | float) and key not in ("tokens", "step"):
            numbers[key] = value
    return numbers


@contextmanager
def _forgiven(sinks: dict[str, Sink], key: str) -> Iterator[None]:
    """Let the run go on without a tracker, whatever that fails with."""
    try:
        yield
    except Exception as error:
        sinks.pop(key, None)
        warnings.warn(
            f"{key} failed and gets no more metrics ({type(error).__name__}: {error}). "
            "metrics.jsonl holds them all.",
            stacklevel=4,
        )
