"""Measure how much a model suffers without each layer's attention, one layer at a time.

Leave-one-out skips a layer and looks (Apriel-H1, arXiv 2511.02651, first half of the layers);
replace-one swaps a mixer in, distils it shortly and looks (MIL-MMR of the same paper, 100 steps).
"""

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from hybridize.core.artifacts import cut_half_line, plain, read_jsonl
from hybridize.core.errors import MachineError
from hybridize.core.importance import Importance, LayerScore
from hybridize.evaluation.answers import answer, problems
from hybridize.models.hybrid import without
from hybridize.models.model import Model
from hybridize.surgery.fresh import FreshSettings, convert_fresh
from hybridize.training.data import TokenSource
from hybridize.training.loop import FitSettings, fit
from hybridize.training.objectives import Distillation, measure, rows_to_measure

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class LeaveOneOutSettings:
    """What is skipped and how the damage is measured."""

    metric: str = "kl"
    """kl: KL(model || model without the layer), nats a token. accuracy: share of answers lost."""
    scope: str = "layer"
    """layer: attention and MLP become the identity (the paper). attention: only attention does."""
    tokens: int = 100_000
    """kl: held-out tokens."""
    kinds: tuple[str, ...] = ("recall", "add", "chain", "sort", "edit")
    """accuracy: kinds of problem."""
    problems: int = 50
    """accuracy: problems of each kind."""
    max_new_tokens: int = 192
    """accuracy: token limit of an answer."""
    seed: int = 3
    """accuracy: seed of the problems, not that of the evaluation."""


@dataclass(frozen=True, kw_only=True)
class ReplaceOneSettings:
    """Which mixer is tried and how shortly it is trained."""

    mixer: str = "mamba2"
    """Kind of the mixer swapped in."""
    fresh: FreshSettings = field(default_factory=FreshSettings)
    """How it starts."""
    tokens: int = 100_000
    """Held-out tokens the reverse KL is measured on."""
    steps: int = 100
    """Optimiser updates before the second look; 0 looks once."""
    training: FitSettings = field(default_factory=lambda: FitSettings(tokens=819_200))
    """How the replacement is trained; `tokens` follows from `steps`."""


def leave_one_out(
    model: Model,
    heldout: TokenSource,
    settings: LeaveOneOutSettings,
    out: Path | None = None,
    *,
    progress: Progress | None = None,
) -> Importance:
    """Skip each layer of `model` in turn; the score is the drop in the metric, higher = keep.

    Layers already in `out`/layers.jsonl are not measured again.
    """
    asked = problems(settings.kinds, num_per_kind=settings.problems, seed=settings.seed)

    def share_right() -> float:
        answers = answer(
            model.network,
            model.need_tokenizer(),
            asked,
            max_new_tokens=settings.max_new_tokens,
            batch=64,
        )
        return sum(one.right for one in answers) / len(answers)

    whole = share_right() if settings.metric == "accuracy" else 0.0
    twin = Model(model.name, copy.deepcopy(model.network), model.tokenizer)

    def score(layer: int) -> LayerScore:
        started = time.monotonic()
        error: float | None
        tokens = _tokens_read(heldout, settings.tokens)
        if settings.metric == "accuracy":
            with without(model.network, layer, settings.scope):
                left = share_right()
            loss, tokens = whole - left, 0
            error = math.sqrt((whole * (1 - whole) + left * (1 - left)) / len(asked))
        else:
            kl = Distillation(model.network, {"forward_kl": 1.0})
            with without(twin.network, layer, settings.scope):
                found = measure(twin.network, kl, heldout, tokens=settings.tokens)["forward_kl"]
            loss, error = found.value, found.standard_error
        return LayerScore(
            layer=layer,
            score=loss,
            standard_error=error,
            tokens=tokens,
            seconds=time.monotonic() - started,
        )

    return Importance(
        method="leave_one_out",
        metric=settings.metric,
        scope=settings.scope,
        model=model.name,
        layout=str(model.layout),
        scores=_measure_layers(range(model.layout.num_layers), score, out, progress),
    )


def replace_one(
    student: Model,
    teacher: Model,
    data: TokenSource,
    heldout: TokenSource,
    settings: ReplaceOneSettings,
    out: Path | None = None,
    *,
    calibration: tuple[Tensor, Tensor] | None = None,
    progress: Progress | None = None,
) -> Importance:
    """Replace each remaining attention layer of `student` in turn, distil shortly, measure.

    The score is the reverse KL to the teacher afterwards, in nats a token: low = easy to replace.
    Each replacement starts from the same student, sees the same data, and is thrown away.
    """
    objective = Distillation(teacher.network)

    def score(layer: int) -> LayerScore:
        started = time.monotonic()
        trial = convert_fresh(
            student.network,
            student.layout.convert([layer], to=settings.mixer),
            settings.fresh,
            source=teacher.network,
            calibration=calibration,
        )
        before = after = measure(trial, objective, heldout, tokens=settings.tokens)["reverse_kl"]
        if settings.steps:
            fit(trial, objective, data, settings.training)
            after = measure(trial, objective, heldout, tokens=settings.tokens)["reverse_kl"]
        return LayerScore(
            layer=layer,
            score=after.value,
            standard_error=after.standard_error,
            score_before=before.value,
            tokens=_tokens_read(heldout, settings.tokens)
            + (settings.training.tokens if settings.steps else 0),
            seconds=time.monotonic() - started,
        )

    return Importance(
        method="replace_one",
        metric="reverse_kl",
        mixer=settings.mixer,
        steps=settings.steps,
        model=student.name,
        layout=str(student.layout),
        scores=_measure_layers(student.layout.layers("attention"), score, out, progress),
    )


def _tokens_read(heldout: TokenSource, tokens: int) -> int:
    """Return how many of the tokens asked for there are, in whole rows."""
    return rows_to_measure(heldout, tokens) * heldout.sequence_length


def _measure_layers(
    layers: Iterable[int],
    score: Callable[[int], LayerScore],
    out: Path | None,
    progress: Progress | None,
) -> tuple[LayerScore, ...]:
    """Score each layer, keeping each score on disk at once so that a killed run loses one."""
    layers = list(layers)
    known: dict[int, LayerScore] = {}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        cut_half_line(out / "layers.jsonl")
        found = (LayerScore(**line) for line in read_jsonl(out / "layers.jsonl"))
        known = {entry.layer: entry for entry in found}
    for done, layer in enumerate(layers):
        if layer in known:
            continue
        if progress:
            progress(done, len(layers))
        known[layer] = score(layer)
        if out is not None:
            _keep(known[layer], out / "layers.jsonl")
    return tuple(known[layer] for layer in layers)


def _keep(score: LayerScore, path: Path) -> None:
    """Append a score.

    Raises:
        MachineError: the disk is full or refuses; the scores before stand.
    """
    line = json.dumps(plain(score), allow_nan=False) + "\n"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise MachineError(
            f"{path} could not be written ({error.strerror}). The layers measured before are kept: "
            "make room and run again."
        ) from error
