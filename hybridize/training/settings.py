"""What a training run is asked and what it answers."""

from dataclasses import dataclass, field
from math import ceil
from typing import Literal

from hybridize.core.errors import RecipeError
from hybridize.training.data import TokenSource
from hybridize.training.objectives import Objective
from hybridize.training.optim import OptimizerSettings, ScheduleSettings


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a model is trained."""

    tokens: int
    """Budget, in tokens seen by the model, padding included; rounded up to whole rows."""
    tokens_per_step: int = 8192
    """Tokens of one update; rounded down to whole rows, one at least."""
    rows_per_microbatch: int = 1
    """Rows computed at once: a matter of memory and speed, not of the result."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    grad_clip: float | None = 1.0
    """Norm the gradient is cut to; None leaves it as it is."""
    train: tuple[str, ...] = ("all",)
    """Parameters to train: `all`, `mixer` (of converted layers), or glob patterns of names."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` computes under autocast; weights and updates keep their own type."""
    first_row: int = 0
    """Row of the source to start with, so that a later stage sees other data."""
    seed: int = 0
    """For what the model itself draws, such as dropout; the data have a seed of their own."""
    checkpoint_every: int | None = None
    """Tokens between checkpoints; None writes one at the end and when interrupted."""
    evaluate_every: int | None = None
    """Tokens between held-out measurements; None measures before and after only."""
    skip_bad_batches: int = 0
    """Steps that are left out, each logged with its rows, because loss or gradient is not finite;
    one more stops the run."""
    activation_checkpointing: bool = False
    """Whether each layer runs again in the backward pass, rather than keep what it computed."""
    compile: bool = False
    """Whether each layer runs through `torch.compile`."""

    def __post_init__(self) -> None:
        for name in (
            "tokens",
            "tokens_per_step",
            "rows_per_microbatch",
            "checkpoint_every",
            "evaluate_every",
            "grad_clip",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RecipeError(f"{name} is {value}. Choose more than 0.")
        if self.skip_bad_batches < 0:
            raise RecipeError(f"skip_bad_batches is {self.skip_bad_batches}. Choose 0 or more.")
        if self.dtype not in ("float32", "bfloat16"):
            raise RecipeError(f"dtype {self.dtype!r} is not one of float32, bfloat16.")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The tokens of a run, cut into rows and steps."""

    row_tokens: int
    """Tokens of a row: the sequence length."""
    first_row: int
    total_rows: int
    rows_per_step: int
    """Of every step but the last, which takes what is left."""

    @classmethod
    def of(cls, settings: FitSettings, row_tokens: int) -> "Budget":
        """Cut the budget of `settings` into rows of `row_tokens`."""
        return cls(
            row_tokens=row_tokens,
            first_row=settings.first_row,
            total_rows=ceil(settings.tokens / row_tokens),
            rows_per_step=max(1, settings.tokens_per_step // row_tokens),
        )

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        return ceil(self.total_rows / self.rows_per_step)

    def tokens(self, step: int) -> int:
        """Return the tokens seen after `step` steps."""
        return min(step * self.rows_per_step, self.total_rows) * self.row_tokens

    def rows(self, step: int) -> range:
        """Return the rows of the step that follows `step` steps."""
        start, end = (min(n * self.rows_per_step, self.total_rows) for n in (step, step + 1))
        return range(self.first_row + start, self.first_row + end)

    def is_due(self, step: int, every: int | None) -> bool:
        """Tell whether the last of `step` steps passed a multiple of `every` tokens."""
        return every is not None and self.tokens(step) // every > self.tokens(step - 1) // every


@dataclass(frozen=True, kw_only=True)
class Heldout:
    """What is measured on data that are not trained on."""

    source: TokenSource
    tokens: int
    """Tokens of one measurement."""
    objective: Objective | None = None
    """What to measure; None measures the training objective."""
    rows_per_batch: int | None = None
    """Rows computed at once; None takes those of a microbatch."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What training came to."""

    tokens: int
    """Tokens seen, padding included."""
    steps: int
    rows: int
    """Rows used; a later stage may start with `first_row + rows`."""
    seconds: float
    """Time in steps, interruptions and measurements left out."""
    loss: float
    """Weighted loss of the last step, in nats per counted token."""
    heldout_before: dict[str, float] | None
    """Held-out losses before the first step, in nats per counted token."""
    heldout: dict[str, float] | None
    """Held-out losses after the last step."""
    trainable: int
    """Number of trained values."""
