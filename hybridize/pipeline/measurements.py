"""How the nodes that measure importance are done."""

from itertools import count
from typing import TYPE_CHECKING, Any

from hybridize.core.errors import Interrupted
from hybridize.core.importance import Importance
from hybridize.core.sections import LeaveOneOut, ReplaceOne
from hybridize.pipeline.interrupts import layers_kept
from hybridize.pipeline.street import Node
from hybridize.pipeline.translate import make_fit_settings
from hybridize.stages import importance

if TYPE_CHECKING:
    from hybridize.pipeline.actions import Actions

CHECKED = "a node stands for what a checked recipe asks for"


def measure_node(actions: "Actions", node: Node, method: str, stage: str | None) -> dict[str, Any]:
    """Measure importance by a method, for a stage or for all; return what `result.json` holds."""
    calls = count()

    def progress(done: int, total: int) -> None:
        actions.observer.node_progressed(node.name, done, total)
        if next(calls) > 0 and actions.stop():
            raise Interrupted("the time is over")

    with layers_kept(node):
        if method == "leave_one_out":
            measured = _leave_one_out(actions, node, progress)
        else:
            measured = _replace_one(actions, node, stage, progress)
    measured.save(node.folder.with_name(f"{node.folder.name}.json"))
    actions.observer.node_said(node.name, str(measured))
    correlation = measured.rank_correlation()
    return {"least_first": measured.least(len(measured.scores)), "spearman": correlation}


def _leave_one_out(actions: "Actions", node: Node, progress: importance.Progress) -> Importance:
    section = actions.recipe.measurement("leave_one_out")
    assert isinstance(section, LeaveOneOut) and actions.heldout is not None, CHECKED
    settings = importance.LeaveOneOutSettings(
        metric=section.metric,
        scope=section.scope,
        tokens=section.tokens,
        problems=section.problems,
    )
    return importance.leave_one_out(
        actions.teacher, actions.heldout, settings, node.folder, progress=progress
    )


def _replace_one(
    actions: "Actions", node: Node, stage: str | None, progress: importance.Progress
) -> Importance:
    recipe = actions.recipe
    section = recipe.measurement("replace_one")
    assert isinstance(section, ReplaceOne) and actions.heldout is not None, CHECKED
    start = str(recipe.stage(stage).start_from) if stage else "teacher"
    probe = recipe.distill.model_copy(
        update={
            "optimizer": recipe.distill.optimizer.model_copy(update={"lr": section.lr}),
            "tokens_per_step": section.tokens_per_step,
            "train": section.train,
            "skip_bad_batches": 0,
        }
    )
    tokens = max(1, section.steps) * section.tokens_per_step
    settings = importance.ReplaceOneSettings(
        mixer=recipe.mixer.kind,
        fresh=actions.fresh,
        tokens=section.tokens,
        steps=section.steps,
        training=make_fit_settings(probe, recipe, tokens=tokens),
    )
    return importance.replace_one(
        actions.model(start),
        actions.teacher,
        actions.data,
        actions.heldout,
        settings,
        node.folder,
        calibration=actions.calibration,
        progress=progress,
    )
