"""The sections of a recipe: what each stop of the street can be told, strictly typed.

Budgets are in tokens ("300M"), shares in percent ("2%"). A docstring under a field is the text of
the reference page and of the comments that `hybridize new` writes.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from hybridize.core.quantities import parse_share, parse_tokens


def _read_number(value: Any) -> Any:
    """Read `1e-4`, which YAML takes for text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


Tokens = Annotated[int, BeforeValidator(parse_tokens), Field(gt=0)]
Share = Annotated[float, BeforeValidator(parse_share)]
Number = Annotated[float, BeforeValidator(_read_number), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]
Word = Annotated[str, Field(min_length=1)]
Precision = Literal["float32", "bfloat16"]
Scalar = bool | int | float | str | None
Words = Annotated[tuple[Word, ...], Field(strict=False, min_length=1)]
Numbers = Annotated[tuple[NonNegative, ...], Field(strict=False, min_length=1)]


class Section(BaseModel):
    """A part of a recipe: unknown keys and wrong types are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Teacher(Section):
    """The pretrained transformer to convert; it is never changed."""

    model: Word
    """Local folder, hub id, or `shipped` for the small teacher inside the package."""
    revision: Word | None = None
    """Commit or tag of a hub id; null means its newest."""
    dtype: Precision = "float32"
    """Precision of the weights: float32 or bfloat16."""


class Tasks(Section):
    """Generated problems with their reasoning traces; made on the fly, without end."""

    kind: Literal["tasks"] = "tasks"
    """Where the text comes from."""
    mix: dict[str, Positive] | None = None
    """Kind of problem -> weight; null means all kinds alike."""
    style: Literal["traces", "text"] = "traces"
    """traces: problem, reasoning, answer. text: plain text without any problem."""


class Jsonl(Section):
    """A JSONL file, one document a line.

    Give `text`, or `prompt` and `completion`, or `messages`; with none, keys of these very names
    are looked for in the first line.
    """

    kind: Literal["jsonl"] = "jsonl"
    """Where the text comes from."""
    path: Word
    """The file, seen from the working directory."""
    text: Word | None = None
    """Key of the whole text; every token counts in the loss."""
    prompt: Word | None = None
    """Key of the prompt, which does not count in the loss."""
    completion: Word | None = None
    """Key of the completion, which counts in the loss."""
    messages: Word | None = None
    """Key of a list of chat messages; the assistant's count in the loss."""


def _source_kind(value: Any) -> str | None:
    """Tell the kind of a source; one with a `path` is a file even where it does not say so."""
    if not isinstance(value, dict):
        return getattr(value, "kind", None)
    kind = value.get("kind", "jsonl" if "path" in value else "tasks")
    return kind if isinstance(kind, str) else None


Source = Annotated[
    Annotated[Tasks, Tag("tasks")] | Annotated[Jsonl, Tag("jsonl")], Discriminator(_source_kind)
]


class Data(Section):
    """The text that is trained and measured on: reasoning traces, rather than web text."""

    train: Source = Tasks()
    """What students are trained on."""
    heldout: Source | None = None
    """What they are measured on; null means the held-out part of `train`, if it is tasks."""
    sequence_length: Annotated[int, Field(gt=1)] = 512
    """Tokens in a row; documents are packed into rows."""


class Mixer(Section):
    """What takes the place of attention."""

    kind: Word = "mamba2"
    """A mixer of `hybridize ls mixers`, or package.module:Name."""
    init: Literal["from_attention", "random"] = "from_attention"
    """from_attention: start from the teacher's query, key, value and output weights."""
    calibrate: Tokens | None = None
    """Training tokens on which gates and output projections of fresh mixers are fitted, in closed
    form, to the teacher's attention; null leaves them as initialised."""
    options: dict[str, Scalar] = {}
    """Options of the mixer, such as expand, state_size or conv_width."""


class LeaveOneOut(Section):
    """Skip each layer in turn and measure how much the model suffers."""

    method: Literal["leave_one_out"] = "leave_one_out"
    """How importance is measured."""
    metric: Literal["kl", "accuracy"] = "kl"
    """kl: divergence from the whole model. accuracy: share of problems lost."""
    scope: Literal["layer", "attention"] = "layer"
    """What is skipped: the whole layer, or its attention only."""
    tokens: Tokens = 100_000
    """kl: held-out tokens a layer is measured on."""
    problems: Count = 50
    """accuracy: problems of each kind that a layer is measured on."""


class ReplaceOne(Section):
    """Replace each layer's attention in turn, train it shortly, and measure what remains."""

    method: Literal["replace_one"] = "replace_one"
    """How importance is measured."""
    metric: Literal["reverse_kl"] = "reverse_kl"
    """reverse_kl: divergence from the teacher, in nats a token."""
    tokens: Tokens = 100_000
    """Held-out tokens a layer is measured on."""
    steps: Annotated[int, Field(ge=0)] = 100
    """Optimiser updates that each replacement is given; 0 looks right after the replacement."""
    tokens_per_step: Tokens = 8_192
    """Tokens of one update."""
    lr: Positive = 1e-3
    """Learning rate of the short training."""
    train: Words = ("mixer",)
    """What the short training changes: mixer, all, or patterns of parameter names."""


Measurement = Annotated[LeaveOneOut | ReplaceOne, Field(discriminator="method")]


class Optimizer(Section):
    """How gradients become updates."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for matrices with adamw for the rest."""
    lr: Positive = 3e-4
    """Peak learning rate."""
    weight_decay: NonNegative = 0.0
    """Decay of the matrices; norms, biases and decay rates have none."""
    betas: Annotated[tuple[Number, Number], Field(strict=False)] = (0.9, 0.95)
    """Memory of the gradient and of its square."""


class Schedule(Section):
    """How the learning rate goes over the budget."""

    name: Literal["constant", "cosine", "wsd"] = "wsd"
    """wsd: warm up, stay, decay."""
    warmup: Share = 0.02
    """Share of the budget until the peak is reached."""
    decay: Share = 0.2
    """wsd: share of the budget, at its end, over which the rate goes to zero."""


class Training(Section):
    """How weights are trained; shared by distillation and fine-tuning."""

    optimizer: Optimizer = Optimizer()
    """How gradients become updates."""
    schedule: Schedule = Schedule()
    """How the learning rate goes over the budget."""
    grad_clip: Positive | None = 1.0
    """Largest norm of the gradient; null means any."""
    tokens_per_step: Tokens = 512_000
    """Tokens of one update."""
    rows_per_microbatch: Count | None = None
    """Rows that go through the model at once; null means all rows of an update."""
    train: Words = ("all",)
    """What is trained: all, mixer, or patterns of parameter names."""
    checkpoint_every: Tokens | None = None
    """Tokens between two checkpoints; null means only at the end."""
    evaluate_every: Tokens | None = None
    """Tokens between two held-out measurements; null means only before and after."""
    dtype: Precision = "float32"
    """Precision of the computation; weights and optimiser stay as they are."""


class Distill(Training):
    """How a stage brings the student back to the teacher; a stage may override any of it."""

    loss: dict[str, Positive] = {"reverse_kl": 1.0}
    """Loss -> weight; see `hybridize ls losses`."""
    temperature: Positive = 1.0
    """Both sides' logits are divided by it."""


class Stage(Distill):
    """One round: convert some more layers, then distil. Keys left out are those of `distill`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name of the stage and of its model: h8 has 8 converted layers."""
    converted: Count
    """Converted layers after the stage, in all."""
    tokens: Tokens
    """Budget, in tokens seen by the student."""
    rank_by: Literal["leave_one_out", "replace_one"] | None = None
    """Which measurement chooses the layers; may be left out where there is only one."""
    start_from: Word | None = None
    """Stage to go on from; null means the one before, and the teacher for the first."""


class Sft(Training):
    """Supervised fine-tuning on completions. Keys left out are those of `distill`."""

    tokens: Tokens
    """Budget, in tokens seen by the student."""
    start_from: Word | None = None
    """Stage to start from; null means the last."""
    data: Source | None = None
    """What is trained on; null means data.train."""


class Merge(Section):
    """One model from several of the same layout."""

    method: Word = "linear"
    """linear: the weighted mean of all weights."""
    models: Words
    """Stages to merge, and `sft`."""
    weights: Numbers | None = None
    """One weight a model; null means all alike."""


class Evaluate(Section):
    """Scores of the teacher and the students on the same problems."""

    suite: Word = "tasks"
    """A suite of `hybridize ls suites`, or package.module:name."""
    problems: Count = 100
    """Problems of each kind."""
    every_stage: bool = False
    """Score the model of each stage, rather than the last ones only."""
    max_new_tokens: Count = 256
    """Tokens an answer may take."""
    batch: Count = 32
    """Problems answered at once."""


class Bench(Section):
    """Speed and memory of the teacher and the students."""

    context_tokens: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] = (512, 2048)
    """Lengths of the prompt."""
    output_tokens: Count = 64
    """Tokens generated after each prompt."""
    batch: Count = 1
    """Sequences at once."""
    repeats: Count = 3
    """Measurements of each point; their median counts."""


class Report(Section):
    """The page that shows what was done and what was lost."""

    format: Annotated[tuple[Literal["html", "md"], ...], Field(strict=False, min_length=1)] = (
        "html",
        "md",
    )
    """html: one page without outside references. md: the same tables as text."""
