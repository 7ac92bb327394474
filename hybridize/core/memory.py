"""The memory of one GPU in training, with both models sharded over all GPUs as FSDP2 does.

Every formula, its source and how far it is from published runs: docs/cost.md.
"""

from dataclasses import dataclass

from hybridize.core.cost import count_trained
from hybridize.core.layout import Layout
from hybridize.core.recipe import Recipe
from hybridize.core.sections import Training
from hybridize.core.shape import ModelShape, Options

BYTES = {"float32": 4, "bfloat16": 2}
GRADIENT_BYTES, MOMENT_BYTES = 4, 8
"""Of a trained weight: its float32 gradient, and both float32 moments of AdamW."""
LOSS_VALUES, LOSS_BLOCK = 2**27, 2**24
"""Logits held at a time, those of both models, and logits that losses are computed of at a time."""
LOSS_COPIES = 8
"""float32 values a logit of such a block takes: the logits, their logarithms and probabilities on
both sides, the gradient, and one more while it is added up."""
GATHERED_LAYERS = 2
"""Layers whose weights are whole at a time: the one computed and the one fetched ahead."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one GPU, by what takes them."""

    teacher: float
    student: float
    gradients: float
    optimizer: float
    gathered: float
    """Weights that are whole for a moment, and the gradient of a layer before it is spread."""
    loss: float
    recomputed: float
    """Activations, if each layer is computed again in the backward pass."""
    activations: float
    """Activations, if all are kept."""

    @property
    def total(self) -> float:
        """All of it with layers computed again."""
        states = self.teacher + self.student + self.gradients + self.optimizer
        return states + self.gathered + self.loss + self.recomputed

    @property
    def total_kept(self) -> float:
        """All of it with every activation kept."""
        return self.total - self.recomputed + self.activations


def plan_memory(
    recipe: Recipe, shape: ModelShape, training: Training, converted: int, gpus: int
) -> Memory:
    """Estimate what training takes on each of `gpus`; Python and the libraries come on top.

    Args:
        recipe: for the dtype, the length of rows and the mixer.
        shape: of the teacher.
        training: a stage, or sft, which has no teacher.
        converted: layers converted in the student.
        gpus: which share weights, gradients, optimizer and the rows of a step.
    """
    kind, options = recipe.mixer.kind, {recipe.mixer.kind: recipe.mixer.options}
    layout = shape.student_layout(converted, kind)
    weight, value = BYTES[recipe.teacher.dtype], BYTES[training.dtype]
    trained = count_trained(recipe, shape, training, converted)
    taught = hasattr(training, "loss")
    length = recipe.data.sequence_length
    rows = -(-max(1, training.tokens_per_step // length) // gpus)
    tokens = min(rows, training.rows_per_microbatch or rows) * length
    kinds = dict.fromkeys(layout.mixers)
    largest = max(_layer_parameters(shape, each, options) for each in kinds)
    alike = (Layout.uniform(shape.num_layers, each) for each in kinds)
    saved = max(shape.saved_values(each, options) for each in alike) // shape.num_layers
    ends = _end_parameters(shape)
    gathered = (GATHERED_LAYERS + 1) * largest + ends * (2 if taught else 1)
    logits = min(LOSS_VALUES, (2 if taught else 1) * tokens * shape.vocab_size)
    head = shape.vocab_size * shape.hidden_size if "all" in training.train else 0
    return Memory(
        teacher=taught * shape.parameters() * weight / gpus,
        student=shape.parameters(layout, options) * weight / gpus,
        gradients=trained * GRADIENT_BYTES / gpus,
        optimizer=trained * MOMENT_BYTES / gpus,
        gathered=gathered * value if gpus > 1 else 0,
        loss=4 * (LOSS_COPIES * min(LOSS_BLOCK, logits) + head)
        + value * (logits + tokens * shape.hidden_size),
        recomputed=value * tokens * (shape.num_layers * shape.hidden_size + saved),
        activations=value * tokens * shape.saved_values(layout, options),
    )


def plan_align_memory(recipe: Recipe, shape: ModelShape) -> Memory | None:
    """Estimate what the alignment takes on the one device it uses; None where nothing is aligned.

    Mixers of all layers are trained at once, and the backward pass goes through each alone.
    """
    section = recipe.align
    if section is None:
        return None
    kind, options = recipe.mixer.kind, {recipe.mixer.kind: recipe.mixer.options}
    weight, length = BYTES[recipe.teacher.dtype], recipe.data.sequence_length
    rows = max(1, (section.tokens_per_step or length) // length)
    tokens = min(rows, recipe.distill.rows_per_microbatch or rows) * length
    trained = len(shape.layout().layers("attention")) * shape.mixer_parameters(kind, options)
    mixed, bare = (
        shape.saved_values(shape.student_layout(shape.num_layers, name), options)
        for name in (kind, "identity")
    )
    saved = BYTES[recipe.distill.dtype] * tokens * (mixed - bare)
    return Memory(
        teacher=shape.parameters() * weight,
        student=trained * weight,
        gradients=trained * GRADIENT_BYTES,
        optimizer=trained * MOMENT_BYTES,
        gathered=0,
        loss=0,
        recomputed=saved,
        activations=saved,
    )


def _end_parameters(shape: ModelShape) -> int:
    """Count embedding and head."""
    return shape.vocab_size * shape.hidden_size * (1 if shape.tied else 2)


def _layer_parameters(shape: ModelShape, kind: str, options: Options) -> int:
    """Count the weights of one layer with a mixer of that kind."""
    layers = shape.parameters() - _end_parameters(shape) - shape.hidden_size
    shell = layers // shape.num_layers - shape.mixer_parameters("attention")
    return shell + shape.mixer_parameters(kind, options)
