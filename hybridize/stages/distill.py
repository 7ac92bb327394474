"""Distil: train a student towards the teacher's distribution, on completion tokens only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hybridize.core.loss_weights import LossWeight
from hybridize.models.model import Model
from hybridize.training.data import TokenSource
from hybridize.training.loop import FitResult, FitSettings, Heldout, fit
from hybridize.training.metrics import Progress
from hybridize.training.objectives import Distillation


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """How one stage is trained."""

    training: FitSettings
    """Budget, optimizer, schedule."""
    loss: Mapping[str, float | LossWeight] = field(default_factory=lambda: {"reverse_kl": 1.0})
    """Loss name -> weight, which may change over the budget; see `hybridize ls losses`."""
    temperature: float = 1.0
    """Both sides' logits are divided by it."""
    heldout_tokens: int = 16_384
    """Held-out tokens the divergence from the teacher is measured on."""


def run(
    student: Model,
    teacher: Model,
    data: TokenSource,
    settings: DistillSettings,
    out: Path | None = None,
    *,
    heldout: TokenSource | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> FitResult:
    """Train `student` in place towards `teacher`; metrics and checkpoints go under `out`.

    Raises:
        RunError: a loss is not finite, or a checkpoint does not fit.
        Interrupted: on SIGINT, SIGTERM or `stop`, after the step and a checkpoint.
    """
    objective = Distillation(teacher.network, settings.loss, temperature=settings.temperature)
    measured = None
    if heldout is not None:
        reverse_kl = Distillation(teacher.network)
        measured = Heldout(source=heldout, tokens=settings.heldout_tokens, objective=reverse_kl)
    return fit(
        student.network,
        objective,
        data,
        settings.training,
        out,
        heldout=measured,
        progress=progress,
        stop=stop,
    )
