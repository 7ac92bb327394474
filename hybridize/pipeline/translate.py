"""From the recipe's words to the settings of stages, and to sources of training rows."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from hybridize.core.recipe import Recipe
from hybridize.core.sections import Optimizer, Schedule, Training
from hybridize.core.sources import HELDOUT_SHARE, Blend, Source, Tasks
from hybridize.core.stored_text import StoredText
from hybridize.stages.align import AlignSettings
from hybridize.surgery.fresh import FreshSettings
from hybridize.training.blend import BlendRows
from hybridize.training.data import TaskRows, Tokenizer, TokenSource, batch
from hybridize.training.loop import FitSettings
from hybridize.training.optim import OptimizerSettings, ScheduleSettings
from hybridize.training.text_rows import TextRows, TextSettings
from hybridize.training.thoughts import warn_without_thoughts

ALIGN_DECAY = 0.7
"""Share of the budget of an alignment over which the learning rate goes to zero."""


def make_source(
    source: Source,
    recipe: Recipe,
    tokenizer: Tokenizer,
    *,
    heldout: bool = False,
    cache: Path | None = None,
) -> TaskRows | TextRows | BlendRows:
    """Return the rows a data section describes.

    Args:
        heldout: where the recipe sets a share of its text apart, take that share.
        cache: folder that keeps the tokens of files, where the recipe names none.

    Raises:
        RunError: text that is missing or does not hold what the recipe says.
        MachineError: a package that reads the text is not installed.
    """
    rows = _make_rows(source, recipe, tokenizer, heldout, cache)
    if not heldout:
        warn_without_thoughts(tokenizer, rows, f"recipe {recipe.name}")
    return rows


def _make_rows(
    source: Source, recipe: Recipe, tokenizer: Tokenizer, heldout: bool, cache: Path | None
) -> TaskRows | TextRows | BlendRows:
    length, share = recipe.data.sequence_length, recipe.data.heldout_share
    if isinstance(source, Blend):
        parts = [_make_rows(part, recipe, tokenizer, heldout, cache) for part in source.sources]
        return BlendRows(parts, source.shares)
    if isinstance(source, Tasks):
        return TaskRows(
            tokenizer,
            sequence_length=length,
            seed=recipe.seed,
            split="heldout" if heldout else "train",
            mix=source.mix,
            style=source.style,
        )
    side: Literal["heldout", "train"] = "heldout" if heldout else "train"
    return TextRows(
        StoredText.of(source),
        tokenizer,
        sequence_length=length,
        seed=recipe.seed,
        settings=TextSettings(
            split="all" if share is None else side,
            heldout_share=share or HELDOUT_SHARE,
            long_documents=source.long_documents,
        ),
        cache=recipe.data.cache or cache,
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
        skip_bad_batches=training.skip_bad_batches,
        activation_checkpointing=recipe.devices.activation_checkpointing,
        compile=recipe.devices.compile,
    )


def make_fresh_settings(recipe: Recipe, aligned: Path | None) -> FreshSettings:
    """Return how fresh mixers start; `aligned` is the folder of mixers that are aligned."""
    mixer = recipe.mixer
    return FreshSettings(
        init=mixer.init,
        options=dict(mixer.options),
        seed=recipe.seed,
        aligned=aligned if mixer.init == "aligned" else None,
    )


def make_align_settings(recipe: Recipe) -> AlignSettings:
    """Return how the mixers of all layers are aligned, and how they start."""
    section = recipe.align
    assert section is not None, "a checked recipe has what it asks for"
    training = Training(
        optimizer=Optimizer(lr=section.lr),
        schedule=Schedule(decay=ALIGN_DECAY),
        grad_clip=None,
        tokens_per_step=section.tokens_per_step or recipe.data.sequence_length,
        rows_per_microbatch=recipe.distill.rows_per_microbatch,
        checkpoint_every=recipe.distill.checkpoint_every,
        skip_bad_batches=recipe.distill.skip_bad_batches,
        dtype=recipe.distill.dtype,
    )
    settings = make_fit_settings(training, recipe, tokens=section.tokens)
    return AlignSettings(
        # These change how whole layers run, of which alignment has none.
        training=replace(settings, activation_checkpointing=False, compile=False),
        mixer=recipe.mixer.kind,
        fresh=FreshSettings(
            init=section.init, options=dict(recipe.mixer.options), seed=recipe.seed
        ),
    )


def make_calibration(source: TokenSource, tokens: int | None) -> tuple[Tensor, Tensor] | None:
    """Return the first `tokens` tokens of a source and their document numbers; None for None."""
    if tokens is None:
        return None
    rows = batch(source, 0, max(1, tokens // source.sequence_length))
    return rows.input_ids_BT, rows.segments_BT
