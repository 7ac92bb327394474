"""Fine-tune a student on traces: cross entropy of the completion's own tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hybridize.models.model import Model
from hybridize.training.data import TokenSource
from hybridize.training.loop import FitResult, FitSettings, Heldout, fit
from hybridize.training.metrics import Progress
from hybridize.training.objectives import NextToken


@dataclass(frozen=True, kw_only=True)
class SftSettings:
    """How the student is fine-tuned."""

    training: FitSettings
    """Budget, optimizer, schedule."""
    heldout_tokens: int = 16_384
    """Held-out tokens the cross entropy is measured on."""


def run(
    student: Model,
    data: TokenSource,
    settings: SftSettings,
    out: Path | None = None,
    *,
    heldout: TokenSource | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> FitResult:
    """Train `student` in place on its own next tokens; the prompt does not count.

    Raises:
        RunError: a loss is not finite, or a checkpoint does not fit.
        Interrupted: on SIGINT, SIGTERM or `stop`, after the step and a checkpoint.
    """
    measured = None
    if heldout is not None:
        measured = Heldout(source=heldout, tokens=settings.heldout_tokens)
    return fit(
        student.network,
        NextToken(),
        data,
        settings.training,
        out,
        heldout=measured,
        progress=progress,
        stop=stop,
    )
