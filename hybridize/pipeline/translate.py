"""From the recipe's words to the settings of stages, and to sources of training rows."""

from torch import Tensor

from hybridize.core.recipe import Recipe
from hybridize.core.sections import Jsonl, Source, Training
from hybridize.training.data import TaskRows, Tokenizer, TokenSource, batch
from hybridize.training.jsonl import JsonlRows
from hybridize.training.loop import FitSettings
from hybridize.training.optim import OptimizerSettings, ScheduleSettings


def make_source(
    source: Source, recipe: Recipe, tokenizer: Tokenizer, *, heldout: bool = False
) -> TokenSource:
    """Return the rows a data section describes.

    Raises:
        RecipeError: a file that is missing or does not hold what the recipe says.
    """
    length = recipe.data.sequence_length
    if isinstance(source, Jsonl):
        keys = source.model_dump(include={"text", "prompt", "completion", "messages"})
        return JsonlRows(
            source.path,
            tokenizer,
            sequence_length=length,
            seed=recipe.seed,
            keys={name: key for name, key in keys.items() if key is not None} or None,
        )
    return TaskRows(
        tokenizer,
        sequence_length=length,
        seed=recipe.seed,
        split="heldout" if heldout else "train",
        mix=source.mix,
        style=source.style,
    )


def make_fit_settings(
    training: Training, recipe: Recipe, *, tokens: int, first_row: int = 0
) -> FitSettings:
    """Return how a stage, a probe or fine-tuning is trained."""
    optimizer, schedule = training.optimizer, training.schedule
    rows = max(1, training.tokens_per_step // recipe.data.sequence_length)
    return FitSettings(
        tokens=tokens,
        tokens_per_step=training.tokens_per_step,
        rows_per_microbatch=training.rows_per_microbatch or rows,
        optimizer=OptimizerSettings(
            name=optimizer.name,
            lr=optimizer.lr,
            weight_decay=optimizer.weight_decay,
            betas=optimizer.betas,
        ),
        schedule=ScheduleSettings(name=schedule.name, warmup=schedule.warmup, decay=schedule.decay),
        grad_clip=training.grad_clip,
        train=training.train,
        dtype=training.dtype,
        first_row=first_row,
        seed=recipe.seed,
        checkpoint_every=training.checkpoint_every,
        evaluate_every=training.evaluate_every,
    )


def make_calibration(source: TokenSource, tokens: int | None) -> tuple[Tensor, Tensor] | None:
    """Return the first `tokens` tokens of a source and their document numbers; None for None."""
    if tokens is None:
        return None
    rows = batch(source, 0, max(1, tokens // source.sequence_length))
    return rows.input_ids_BT, rows.segments_BT
