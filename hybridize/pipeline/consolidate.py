"""Turn a checkpoint of an unfinished stage into a model folder, however many ranks wrote it."""

from pathlib import Path

import torch

from hybridize.core.artifacts import RunFolder
from hybridize.core.errors import RunError
from hybridize.core.recipe import load_recipe
from hybridize.pipeline.actions import Actions
from hybridize.pipeline.observer import Observer
from hybridize.training.checkpoint import read_weights


def consolidate(checkpoint: Path | str, out: Path | str) -> Path:
    """Write the model of a checkpoint as `model/` of a finished stage would be written.

    A checkpoint keeps what was trained; the rest is converted again as its run did.

    Args:
        checkpoint: `checkpoint` of a stage or of sft in a run folder, or one `step-...` in it.
        out: folder to write; a model that stands there is replaced.

    Raises:
        RunError: it is no checkpoint of a run, or is damaged.
    """
    checkpoint = Path(checkpoint)
    home = checkpoint.parent if checkpoint.name == "checkpoint" else checkpoint.parents[1]
    is_stage = home.parent.name == "stages"
    run = RunFolder(home.parents[1] if is_stage else home.parent)
    if not run.resolved_recipe.exists() or not (is_stage or home.name == "sft"):
        raise RunError(
            f"{checkpoint} is not a checkpoint in a run folder. Give the folder `checkpoint` of a "
            "stage, such as runs/NAME/stages/01-h6/checkpoint."
        )
    recipe = load_recipe(run.resolved_recipe)
    actions = Actions(recipe, run, "cpu", Observer(), lambda: False)
    student = actions.start(home.name.partition("-")[2] if is_stage else "sft")
    with torch.no_grad():
        read_weights(checkpoint, student.network)
    student.network.config.last_training_window = recipe.data.sequence_length
    return student.save(out)
