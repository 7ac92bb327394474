"""Cost: the memory and the time that ranking and training will take, estimated before either.

A FLOP is counted as `ModelShape.flops_per_token` counts it: attention over half a row, whether or
not the documents in the row are shorter. Evaluation, the bench and loading are not counted.
"""

from hybridize.core.recipe import Recipe
from hybridize.core.sections import ReplaceOne, Stage, Training
from hybridize.core.shape import ModelShape

STATE_BYTES = 12
"""Bytes a trained weight takes beside itself: float32 gradient and both moments of AdamW."""
_BYTES = {"float32": 4, "bfloat16": 2}


def flops_of(recipe: Recipe, shape: ModelShape, converted: int) -> float:
    """Count the FLOPs of one token's forward pass with so many layers converted."""
    layout = shape.student_layout(converted, recipe.mixer.kind)
    options = {recipe.mixer.kind: recipe.mixer.options}
    return shape.flops_per_token(layout, recipe.data.sequence_length // 2, options)


def ranking_flops(recipe: Recipe, shape: ModelShape, stage: Stage) -> float:
    """Count the FLOPs of the measurement that chooses the layers of a stage.

    Leaving layers out is measured once, and counted at the first stage it ranks; where it counts
    solved problems rather than tokens, it is not counted.
    """
    section = recipe.measurement(str(stage.rank_by))
    teacher = flops_of(recipe, shape, 0)
    if isinstance(section, ReplaceOne):
        before = _converted_before(recipe, stage)
        student = flops_of(recipe, shape, before + 1)
        trained = section.steps * section.tokens_per_step * (3 * student + teacher)
        measured = 2 * section.tokens * (student + teacher)
        return (shape.num_layers - before) * (trained + measured)
    ranked = [entry.name for entry in recipe.stages if entry.rank_by == stage.rank_by]
    if section is None or section.metric != "kl" or stage.name != ranked[0]:
        return 0.0
    return (shape.num_layers + 1) * section.tokens * teacher


def align_flops(recipe: Recipe, shape: ModelShape) -> float:
    """Count the FLOPs of the alignment: the teacher up to its head, and every mixer there and back.

    0 where the recipe aligns nothing.
    """
    if recipe.align is None:
        return 0.0
    head = 2 * shape.hidden_size * shape.vocab_size
    teacher = flops_of(recipe, shape, 0) - head
    context, options = recipe.data.sequence_length // 2, {recipe.mixer.kind: recipe.mixer.options}
    mixed, bare = (
        shape.flops_per_token(shape.student_layout(shape.num_layers, kind), context, options)
        for kind in (recipe.mixer.kind, "identity")
    )
    return recipe.align.tokens * (teacher + 3 * (mixed - bare))


def _converted_before(recipe: Recipe, stage: Stage) -> int:
    start = str(stage.start_from)
    return 0 if start == "teacher" else recipe.stage(start).converted


def count_trained(recipe: Recipe, shape: ModelShape, training: Training, converted: int) -> int:
    """Count trained parameters; patterns of names are counted as if they chose everything."""
    options = {recipe.mixer.kind: recipe.mixer.options}
    if training.train == ("mixer",):
        return converted * shape.mixer_parameters(recipe.mixer.kind, options)
    layout = shape.student_layout(converted, recipe.mixer.kind)
    return shape.parameters(layout, options)


def weight_bytes(recipe: Recipe, shape: ModelShape, converted: int, trained: int) -> int:
    """Estimate what both models, the gradients and the optimiser take."""
    size = _BYTES[recipe.teacher.dtype]
    options = {recipe.mixer.kind: recipe.mixer.options}
    layout = shape.student_layout(converted, recipe.mixer.kind)
    student = shape.parameters(layout, options)
    return (shape.parameters() + student) * size + trained * STATE_BYTES


def activation_bytes(recipe: Recipe, shape: ModelShape, training: Training, converted: int) -> int:
    """Estimate what a microbatch keeps for the backward pass, within a factor of two.

    The head is left out: the loss goes over the tokens in pieces.
    """
    rows = max(1, training.tokens_per_step // recipe.data.sequence_length)
    tokens = min(rows, training.rows_per_microbatch or rows) * recipe.data.sequence_length
    layout = shape.student_layout(converted, recipe.mixer.kind)
    options = {recipe.mixer.kind: recipe.mixer.options}
    return shape.saved_values(layout, options) * tokens * _BYTES[training.dtype]


def stage_bytes(recipe: Recipe, shape: ModelShape, stage: Stage) -> int:
    """Estimate the memory that training a stage takes, Python and torch themselves aside."""
    trained = count_trained(recipe, shape, stage, stage.converted)
    return weight_bytes(recipe, shape, stage.converted, trained) + activation_bytes(
        recipe, shape, stage, stage.converted
    )


def training_bytes(recipe: Recipe, shape: ModelShape) -> int:
    """Estimate the memory of the largest stage; the teacher alone where there is none.

    That of the alignment is `hybridize.core.memory.plan_align_memory`.
    """
    teacher = shape.parameters() * _BYTES[recipe.teacher.dtype]
    return max([teacher, *(stage_bytes(recipe, shape, stage) for stage in recipe.stages)])
