"""Aligning the mixers of all layers as a recipe says: as a stop of a run, a command and a verb."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridize.core.artifacts import plain
from hybridize.core.recipe import Recipe
from hybridize.models.model import Model
from hybridize.pipeline.translate import make_align_settings, make_calibration
from hybridize.stages import align as stage
from hybridize.surgery.aligned import AlignedMixers
from hybridize.training.data import TokenSource
from hybridize.training.metrics import Progress, StepRecord
from hybridize.training.settings import FitResult
from hybridize.training.trackers import tracked

if TYPE_CHECKING:
    from hybridize.pipeline.actions import Actions
    from hybridize.pipeline.street import Node

Settings = Mapping[str, Any]


def align(
    teacher: Model,
    data: TokenSource,
    *,
    out: Path | str,
    settings: Settings | None = None,
    mixer: Settings | None = None,
    layers: Sequence[int] | None = None,
    heldout: TokenSource | None = None,
    progress: Progress | None = None,
) -> AlignedMixers:
    """Train the mixer of every layer once against that layer's attention in the teacher.

    What it returns is an `init` of `convert`, for any layers, and a `mixer` of
    `measure_importance`; `AlignedMixers.read` opens its folder again.

    Args:
        out: folder to write a file for each layer to; an interrupted call goes on from it.
        settings: those of the section `align` of a recipe: `tokens`, `tokens_per_step`, `lr`, ...
        mixer: those of the section `mixer`: `kind`, `options` and `calibrate`.
        layers: None is all that have attention.
        heldout: measured before and after, for the table that is returned.

    Raises:
        RecipeError: a setting is not known or has a wrong type.
        ModelError: a layer has no attention, or the mixer nothing to train.
        RunError: a loss is not finite, or the checkpoint in `out` is of another run.
        Interrupted: stopped by a signal; the same call goes on.
    """
    values = {
        "version": 1,
        "teacher": {"model": "shipped"},
        "data": {"sequence_length": data.sequence_length},
        "align": dict(settings or {}),
        "mixer": dict(mixer or {}),
    }
    recipe = Recipe.from_values(values, name="settings")
    return align_as_asked(
        recipe, teacher, data, Path(out), layers=layers, heldout=heldout, progress=progress
    )[0]


def align_as_asked(
    recipe: Recipe,
    teacher: Model,
    data: TokenSource,
    out: Path,
    *,
    layers: Sequence[int] | None = None,
    heldout: TokenSource | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> tuple[AlignedMixers, FitResult]:
    """Align as the sections `align` and `mixer` of a recipe say; raises like `align`."""
    rows = make_calibration(data, recipe.mixer.calibrate)
    device = teacher.network.model.embed_tokens.weight.device
    return stage.run(
        teacher,
        data,
        replace(make_align_settings(recipe), layers=None if layers is None else tuple(layers)),
        out,
        heldout=heldout,
        calibration=rows and (rows[0].to(device), rows[1].to(device)),
        progress=progress,
        stop=stop,
    )


def start_from(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the kind of the mixers in a folder, and how a conversion starts from them.

    Raises:
        ModelError: it holds no aligned mixers.
    """
    made = AlignedMixers.read(folder)
    return made.kind, {"init": "aligned", "options": made.options, "aligned": made.folder}


def align_node(actions: "Actions", node: "Node") -> dict[str, Any]:
    """Do the stop `align` of a run; return the values of its `result.json`."""
    recipe = actions.recipe
    with tracked(recipe.track, f"{recipe.name}-{node.name}", node.folder) as track:

        def progress(record: StepRecord) -> None:
            actions.observer.node_stepped(node.name, record)
            track(record)

        aligned, fitted = align_as_asked(
            recipe,
            actions.teacher,
            actions.data,
            node.folder,
            heldout=actions.heldout,
            progress=progress,
            stop=actions.stop,
        )
    actions.observer.node_said(node.name, str(aligned))
    return {
        "mixer": aligned.kind,
        "options": dict(aligned.options),
        "errors": plain(aligned.errors),
        "tokens": fitted.tokens,
        "seconds": fitted.seconds,
        "trainable": fitted.trainable,
    }
