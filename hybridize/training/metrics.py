"""Records of training steps: to JSONL, which is the truth, and to the console."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from hybridize.core.artifacts import plain
from hybridize.core.errors import MachineError
from hybridize.core.quantities import short_count, short_seconds


@dataclass(frozen=True)
class LeftOut:
    """Why a step made no update."""

    because: str
    """What is not finite: the loss, or the gradient."""
    rows: tuple[int, int]
    """First and last of the rows of data that are to blame."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one step did."""

    step: int
    """Number of the step, from 1 on."""
    num_steps: int
    tokens: int
    """Tokens of all steps so far, padding included."""
    total_tokens: int
    """Budget of the run."""
    counted_tokens: int
    """Tokens of this step that the loss is a mean over."""
    loss: float
    """Weighted loss in nats per counted token, before the update."""
    parts: dict[str, float]
    """Each loss in nats per counted token."""
    lr: float
    grad_norm: float
    """Norm of the gradient of all trained parameters before clipping."""
    tokens_per_second: float
    seconds: float
    """Training time so far, interruptions left out."""
    peak_gib: float
    eta_seconds: float
    heldout: dict[str, float] | None = None
    """Held-out losses after this step, where they were measured."""
    left_out: LeftOut | None = None
    """Set where loss or gradient was not finite; the numbers of the step then say nothing."""

    def line(self) -> dict[str, Any]:
        """Return the line of `metrics.jsonl`; that of a step left out has no loss or gradient."""
        keys = (
            "step",
            "tokens",
            "counted_tokens",
            "loss",
            "parts",
            "lr",
            "grad_norm",
            "tokens_per_second",
            "seconds",
            "peak_gib",
        )
        line = {key: getattr(self, key) for key in keys}
        if self.left_out is not None:
            line = {key: line[key] for key in keys if key not in ("loss", "parts", "grad_norm")}
            line["left_out"] = plain(self.left_out)
        return line if self.heldout is None else {**line, "heldout": self.heldout}


Progress = Callable[[StepRecord], None]


class MetricsFile:
    """A JSONL file that grows by one line per step and can be cut back to a checkpoint."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        """Open the file and cut off all after `num_bytes`: lines of steps that are run again."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            self._file.truncate(min(num_bytes, path.stat().st_size))
        except OSError as error:
            raise MachineError(f"{path} could not be opened ({error}).") from error

    def write(self, record: StepRecord) -> None:
        """Append one line.

        Raises:
            MachineError: the disk is full or refuses.
        """
        line = json.dumps(record.line(), allow_nan=False).encode() + b"\n"
        with self._explained():
            while line:
                line = line[self._file.write(line) :]

    def sync(self) -> int:
        """Wait until all lines are on the disk; return the length of the file in bytes."""
        with self._explained():
            os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MachineError(
                f"{self._path} could not be written ({error.strerror}). The checkpoint before "
                "stands: make room and run again."
            ) from error


class ConsoleLine:
    """Progress as one living line in a terminal, or as a line every `every_seconds` in a pipe."""

    def __init__(self, name: str, stream: TextIO, *, every_seconds: float = 30.0) -> None:
        """Name the run as its lines shall, `h8`; `stream` is usually the standard error."""
        self._name, self._stream = name, stream
        self._live = stream.isatty()
        self._every_seconds = 0.2 if self._live else every_seconds
        self._written: float | None = None

    def __call__(self, record: StepRecord) -> None:
        """Show a step, unless one was shown just before; the last, and one left out, always is."""
        moment = time.monotonic()
        last = record.step == record.num_steps or record.left_out is not None
        due = self._written is None or moment - self._written >= self._every_seconds
        if not (last or due):
            return
        self._written = moment
        text = f"{time.strftime('%H:%M:%S')}  {format_record(self._name, record)}"
        if not self._live:
            self._stream.write(text + "\n")
        else:
            self._stream.write(f"\r\x1b[2K{_clip(text)}" + ("\n" if last else ""))
        self._stream.flush()

    def close(self) -> None:
        """End a living line, so that what is printed next starts on its own."""
        if self._live and self._written is not None:
            self._stream.write("\n")
            self._stream.flush()


def format_record(name: str, record: StepRecord) -> str:
    """Print a step as one line, units included."""
    losses = "  ".join(f"{_short_name(part)} {value:.4f}" for part, value in record.parts.items())
    done, total = short_count(record.tokens), short_count(record.total_tokens)
    head = f"{name}  step {record.step}/{record.num_steps}  {done}/{total} tok"
    if record.left_out is not None:
        first, last = record.left_out.rows
        return f"{head}  left out: {record.left_out.because} is not finite, rows {first} to {last}"
    return (
        f"{head}  {losses} nats  "
        f"lr {record.lr:.1e}  grad {record.grad_norm:.2f}  "
        f"{short_count(record.tokens_per_second)} tok/s  {record.peak_gib:.1f} GiB  "
        f"eta {short_seconds(record.eta_seconds)}"
    )


def _short_name(loss: str) -> str:
    names = {"reverse_kl": "rkl", "forward_kl": "fkl", "cross_entropy": "ce"}
    return names.get(loss, loss.rpartition(":")[2])


def _clip(text: str) -> str:
    """Cut a line at the width of the terminal: one that wraps cannot be rewritten."""
    try:
        return text[: os.get_terminal_size().columns - 1]
    except OSError:
        return text
