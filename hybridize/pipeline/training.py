"""How the nodes that train are done: by this process alone, or by all that torchrun started.

Of several processes the first walks the street, loads, converts and saves. The others wait for its
calls, and come in where a model is trained: student and teacher are split over all of them.
"""

import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from hybridize.core.errors import HybridizeError, RunError
from hybridize.models.families import find_family
from hybridize.models.folders import find_folder
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.loading import find_tokenizer, load_outline
from hybridize.models.model import Model
from hybridize.pipeline.parts import list_parts
from hybridize.pipeline.translate import make_fit_settings
from hybridize.stages import distill, sft
from hybridize.training.distributed import Ranks, gather_weights, shard
from hybridize.training.loop import FitResult
from hybridize.training.metrics import StepRecord
from hybridize.training.trackers import tracked

if TYPE_CHECKING:
    from hybridize.pipeline.actions import Actions


@dataclass(frozen=True)
class Job:
    """A training node, and what it starts with beside its models."""

    node: str
    """Name of a stage, or `sft`."""
    first_row: int
    """Row of the data to begin with."""


def train(actions: "Actions", job: Job, student: Model, teacher: Model | None) -> FitResult:
    """Train a student in place as its node asks; `sft` needs no teacher."""
    recipe, out = actions.recipe, actions.home(job.node)
    section = recipe.sft if job.node == "sft" else recipe.stage(job.node)
    assert section is not None, "a node stands for what a checked recipe asks for"
    training = make_fit_settings(section, recipe, tokens=section.tokens, first_row=job.first_row)
    if actions.calls is not None and recipe.teacher.dtype == "bfloat16":
        # Split weights are kept in float32, and computed with as the recipe keeps weights.
        training = replace(training, dtype="bfloat16")
    actions.observer.node_said(job.node, list_parts(student.network, section.train))
    ranks = Ranks() if actions.calls is None else Ranks.world()
    with ranks.together():
        source, heldout = actions.source(job.node), actions.heldout
    names = recipe.track if ranks.is_first else ()
    with tracked(names, f"{recipe.name}-{job.node}", out) as track:

        def progress(record: StepRecord) -> None:
            actions.observer.node_stepped(job.node, record)
            track(record)

        if job.node == "sft":
            return sft.run(
                student,
                source,
                sft.SftSettings(training=training),
                out,
                heldout=heldout,
                progress=progress,
                stop=actions.stop,
            )
        stage = recipe.stage(job.node)
        assert teacher is not None, "distillation has a teacher"
        return distill.run(
            student,
            teacher,
            source,
            distill.DistillSettings(
                training=training, loss=stage.loss, temperature=stage.temperature
            ),
            out,
            heldout=heldout,
            progress=progress,
            stop=actions.stop,
        )


def train_together(actions: "Actions", job: Job, student: Model) -> tuple[Model, FitResult]:
    """Train a student with all ranks; called by the first. Returns the trained student, whole."""
    assert actions.calls is not None, "there are others"
    # Text is turned into tokens once, before the others look for them.
    actions.source(job.node)
    _ = actions.heldout
    actions.calls.send(job)
    fitted, weights = _take_part(actions, job, student)
    assert weights is not None, "the first rank gets the weights"
    network = _make_outline(student.network.config)
    network.load_state_dict(weights, assign=True)
    network.tie_weights()
    network.generation_config = student.network.generation_config
    network.train(False)
    return Model(student.name, network, student.tokenizer), fitted


def outline_teacher(actions: "Actions") -> None:
    """Give a rank that only takes part the teacher without its weights, which come from the first.

    Raises:
        ModelError: the folder of the teacher cannot be read where this rank runs.
    """
    section = actions.recipe.teacher
    folder = find_folder(section.model, section.revision)
    tokenizer = find_tokenizer(folder)
    actions.teacher = Model("teacher", load_outline(folder), tokenizer)


def follow(actions: "Actions") -> None:
    """Take part in what the first rank calls for, until it ends; called by all others."""
    assert actions.calls is not None, "the first rank calls"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first rank says it
        while (job := actions.calls.wait()) is not None:
            try:
                _take_part(actions, job, None)
            except HybridizeError:
                # torchrun stops all once one has ended: the first rank has to say why before.
                with suppress(RunError):
                    actions.calls.wait()
                raise


def _take_part(
    actions: "Actions", job: Job, student: Model | None
) -> tuple[FitResult, dict[str, torch.Tensor] | None]:
    """Split the models, train, and put the student together; `student` is that of the first."""
    like = None if student is None else student.network.cpu()
    shared = Model(job.node, share(like, actions.device, widen=True), actions.teacher.tokenizer)
    teacher = None
    if job.node != "sft":
        whole = None if student is None else actions.teacher.network.cpu()
        network = share(whole, actions.device, widen=False)
        teacher = Model("teacher", network, actions.teacher.tokenizer)
        if student is not None:
            del whole, actions.teacher  # loaded again by the node that needs the whole
    fitted = train(actions, job, shared, teacher)
    return fitted, gather_weights(shared.network, like)


def share(
    network: HybridForCausalLM | None, device: torch.device, *, widen: bool
) -> HybridForCausalLM:
    """Split a network of the first rank over all; called by all, the others give None.

    Args:
        widen: for training: weights in float32, with gradients.
    """
    config = Ranks.world().broadcast(None if network is None else network.config)
    outline = _make_outline(config)
    outline.requires_grad_(widen).train(False)
    shard(outline, network, device, widen=widen)
    return outline


def _make_outline(config: Any) -> HybridForCausalLM:
    """Return a network whose weights are on the meta device; its positions are computed."""
    with torch.device("meta"):
        network = HybridForCausalLM(config)
    teacher = config.teacher
    network.model.rotary_emb = find_family(teacher.model_type).rotary(config=teacher)
    network.tie_weights()
    return network
