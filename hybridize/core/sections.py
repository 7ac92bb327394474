"""The sections of a recipe: what each stop of the street can be told, strictly typed.

Budgets are in tokens ("300M"), shares in percent ("2%"). A docstring under a field is the text of
the reference page and of the comments that `hybridize new` writes.
"""

from typing import Annotated, Literal

from pydantic import Field

from hybridize.core.loss_weights import LossWeights
from hybridize.core.section import (
    Count,
    Names,
    NonNegative,
    Number,
    Numbers,
    Positive,
    Precision,
    Scalar,
    Section,
    Share,
    Tokens,
    Word,
    Words,
)
from hybridize.core.sources import Source


class Teacher(Section):
    """The pretrained transformer to convert; it is never changed."""

    model: Word
    """Local folder, hub id, or `shipped` for the small teacher inside the package."""
    revision: Word | None = None
    """Commit or tag of a hub id; null means its newest."""
    dtype: Precision = "float32"
    """Precision of the weights: float32 or bfloat16."""


class Mixer(Section):
    """What takes the place of attention."""

    kind: Word = "mamba2"
    """A mixer of `hybridize ls mixers`, or package.module:Name."""
    init: Literal["from_attention", "random", "aligned"] = "from_attention"
    """from_attention: start from the teacher's query, key, value and output weights. aligned: start
    from the mixers that `align` trained."""
    calibrate: Tokens | None = None
    """Training tokens on which gates and output projections of fresh mixers are fitted, in closed
    form, to the teacher's attention; null leaves them as initialised, as are mixers that have no
    gate (sliding, identity). Where mixers are aligned, it is what the alignment starts from."""
    options: dict[str, Scalar] = {}  # noqa: RUF012  (pydantic copies defaults)
    """Options of the mixer, such as expand, state_size or conv_width, or window and sinks."""


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


class Align(Section):
    """Train the mixer of every layer once, each against its own layer's attention in the teacher;
    with `mixer.init: aligned` every probe and every stage starts from these."""

    tokens: Tokens = 100_000
    """Budget, in tokens seen by the teacher; all layers are trained in one pass."""
    tokens_per_step: Tokens | None = None
    """Tokens of one update; null is one row of text: with the same tokens, many small steps come
    nearer than few large ones."""
    lr: Positive = 1e-3
    """Peak learning rate of AdamW; over the last 70 % of the budget it goes to zero."""
    init: Literal["from_attention", "random"] = "from_attention"
    """How the mixers start, before they are aligned; see `mixer.init`."""


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
    skip_bad_batches: Annotated[int, Field(ge=0)] = 0
    """Updates left out, each logged with its data rows in metrics.jsonl, because their loss or
    gradient is not finite; one more stops the run, at 0 the first. May change between stops."""


class Distill(Training):
    """How a stage brings the student back to the teacher; a stage may override any of it."""

    loss: LossWeights = {"reverse_kl": 1.0}  # noqa: RUF012  (pydantic copies defaults)
    """Loss -> weight; see `hybridize ls losses`. A weight is a number, or {start: 1.0, end: 0.0}
    to change over the stage, and may have {layers: {4: 1.0}} if the loss is one between layers."""
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
    sweep: Numbers | None = None
    """Weights of the first of two models, 0 to 1, to try beside; each is scored like a model."""


class Evaluate(Section):
    """Scores of the teacher and the students on the same problems."""

    suite: Names = ("tasks",)
    """A suite of `hybridize ls suites`, lm-eval:TASK or package.module:name, or a list of them. The
    first that asks problems gives the scores, in eval/; the others write to eval/SUITE/."""
    problems: Count = 100
    """Problems of each kind that the suite in eval/ asks."""
    limits: dict[Word, Count] = {}  # noqa: RUF012  (pydantic copies defaults)
    """Suite -> how much the others ask, counted as by `hybridize eval --limit`, whose defaults hold
    where nothing is said."""
    diagnose: bool = False
    """Look at the students layer by layer too, as `hybridize diagnose` does: eval/diagnosis/."""
    every_stage: bool = False
    """Score the model of each stage, rather than the last ones only."""
    max_new_tokens: Count = 256
    """Tokens an answer may take."""
    batch: Count = 32
    """Answers generated at once."""
    samples: Count = 1
    """Answers drawn to each problem, for pass@k and the majority vote; more need a temperature."""
    temperature: NonNegative = 0.0
    """0 takes the most likely token each time."""
    top_p: Positive = 1.0
    """Share of the probability to draw from, the most likely tokens first; at most 1."""


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


class Quantize(Section):
    """Files for llama.cpp in fewer bits, each held against the model as it is: quantize/<type>."""

    types: Words
    """Types of the weights: q8_0, q5_1, q5_0, q4_1, q4_0; where llama-quantize is installed also
    q6_k, q5_k_m, q5_k_s, q4_k_m, q4_k_s, q3_k_m, q2_k."""
    model: Word | None = None
    """Model to quantise; null means merge, or else sft, or else the last stage."""
    tokens: Tokens = 32_768
    """Held-out tokens that KL is measured on."""
    problems: Count = 100
    """Problems of each kind that every type answers in llama.cpp, where it is installed; they are
    of the suite that `evaluate` scores by."""


class Export(Section):
    """Folders for other programs, each verified before it counts as done: export/<format>."""

    formats: Words
    """Formats to write; `hybridize ls exports` says what fits where."""
    model: Word | None = None
    """Model to write; null means merge, or else sft, or else the last stage."""
    dtype: Word | None = None
    """Type of the weights: float32, bfloat16, float16; null means that of the model."""


class Devices(Section):
    """How training uses its devices: memory and speed, never the result beyond rounding. Several
    devices are used by starting the run with torchrun."""

    activation_checkpointing: bool = False
    """Run each layer again in the backward pass, rather than keep what it computed."""
    compile: bool = False
    """Run each layer through torch.compile."""


class Report(Section):
    """The page that shows what was done and what was lost."""

    format: Annotated[tuple[Literal["html", "md"], ...], Field(strict=False, min_length=1)] = (
        "html",
        "md",
    )
    """html: one page without outside references. md: the same tables as text."""
