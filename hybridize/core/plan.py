"""Plan: layouts and budgets of all stages, decided before training, with what they will cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from hybridize.core.artifacts import plain
from hybridize.core.budget import list_machine
from hybridize.core.cost import align_flops, flops_of, ranking_flops, stage_bytes
from hybridize.core.errors import RunError
from hybridize.core.layout import Layout
from hybridize.core.machine import Speed, plan_speed
from hybridize.core.memory import Memory, plan_align_memory, plan_memory
from hybridize.core.quantities import short_bytes, short_count, short_flops, short_seconds
from hybridize.core.recipe import Recipe
from hybridize.core.sections import Stage
from hybridize.core.shape import ModelShape

HEADER = (
    *("stage", "converted", "from", "tokens", "parameters"),
    *("memory", "cache", "FLOPs", "time", "layout"),
)


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What one stage will do."""

    name: str
    """Name of the stage and of its model."""
    converted: int
    """Converted layers after the stage, in all."""
    tokens: int
    """Budget, in tokens seen by the student."""
    rank_by: str
    """Method that chooses the layers."""
    start_from: str
    """Stage it goes on from, or `teacher`."""
    layers: tuple[int, ...] | None = None
    """Layers this stage converts; None until they are measured."""
    layout: str | None = None
    """Layout after the stage, printed; None until the layers are measured."""
    parameters: int
    """Parameters of the student."""
    cache_bytes: int
    """Bytes a sequence of the largest trained length keeps for decoding."""
    flops: float
    """FLOPs of training: student forward and backward, teacher forward."""
    ranking_flops: float = 0.0
    """FLOPs of the measurement that chooses its layers."""
    memory_bytes: int = 0
    """Bytes of training: both models, gradients, optimiser and activations; where a machine is
    given, those of one GPU with layers computed again in the backward pass."""
    memory: Memory | None = None
    """What takes them on one GPU; None where no machine is given."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """The stages of one recipe on one teacher."""

    name: str
    """Name of the run."""
    teacher: ModelShape
    """Geometry of the teacher."""
    mixer: str
    """Mixer that takes the place of attention."""
    mixer_options: Mapping[str, Any]
    """Its options."""
    sequence_length: int
    """Tokens in a row of the training data."""
    stages: tuple[StagePlan, ...]
    """One entry a stage, in order."""
    align_tokens: int = 0
    """Budget of the alignment, in tokens seen by the teacher; 0 where nothing is aligned."""
    align_flops: float = 0.0
    """FLOPs of the alignment, which one device does while the others wait."""
    align_memory: Memory | None = None
    """What the alignment takes; None where nothing is aligned."""
    sft_tokens: int = 0
    """Budget of fine-tuning."""
    sft_flops: float = 0.0
    """FLOPs of fine-tuning."""
    sft_memory: Memory | None = None
    """What fine-tuning takes on one GPU; None where no machine is given."""
    speed: Speed = field(default_factory=Speed)
    """How fast the machine is."""

    @property
    def tokens(self) -> int:
        """Tokens of all stages and of fine-tuning."""
        return sum(stage.tokens for stage in self.stages) + self.sft_tokens

    @property
    def flops(self) -> float:
        """FLOPs of all stages with their rankings, of fine-tuning, and of the alignment, these once
        for each device, since the others wait meanwhile."""
        stages = sum(stage.flops + stage.ranking_flops for stage in self.stages)
        return stages + self.sft_flops + self.align_flops * max(1, self.speed.gpus)

    def seconds(self, flops_per_second: float) -> float:
        """Estimate the time of ranking and training at `flops_per_second`."""
        return self.flops / flops_per_second

    def stage(self, name: str) -> StagePlan:
        """Return a stage by name.

        Raises:
            RunError: no such stage.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.stages)
        raise RunError(f"plan of {self.name}: no stage {name!r}. Stages: {names}.")

    def layout_of(self, name: str) -> Layout | None:
        """Return the layout of a stage or of `teacher`; None until its layers are measured."""
        if name == "teacher":
            return self.teacher.layout()
        text = self.stage(name).layout
        return Layout.parse(text) if text else None

    def with_layers(self, name: str, layers: Sequence[int]) -> Self:
        """Return the plan with the layers that stage `name` converts decided.

        Raises:
            RunError: the stage it starts from is not decided, or the number of layers is not the
                planned one, or a layer is converted already.
        """
        stage = self.stage(name)
        before = self.layout_of(stage.start_from)
        if before is None:
            raise RunError(f"stage {name} starts from {stage.start_from}, which has no layout yet.")
        layout = before.convert(layers, to=self.mixer)
        if len(layout.converted) != stage.converted or set(layers) & set(before.converted):
            raise RunError(
                f"stage {name} is to have {stage.converted} converted layers, but converting "
                f"{list(layers)} of {before} gives {layout}. Choose unconverted layers."
            )
        decided = replace(stage, layers=tuple(layers), layout=str(layout))
        stages = tuple(decided if entry.name == name else entry for entry in self.stages)
        return replace(self, stages=stages)

    def text(self, flops_per_second: float | None = None) -> str:
        """Print the plan: the teacher, a row a stage, and the sum; times include the ranking.

        Args:
            flops_per_second: by default that of the plan's machine.
        """
        flops_per_second = flops_per_second or self.speed.flops_per_second
        rows = [HEADER, self._teacher_row()]
        if self.align_memory is not None:
            rows.append(self._align_row(self.align_memory, flops_per_second))
        rows += [_row(stage, flops_per_second) for stage in self.stages]
        if self.sft_tokens:
            seconds = short_seconds(self.sft_flops / flops_per_second)
            cost = ("", "", "", f"{self.sft_flops:.2g}", seconds)
            rows.append(("sft", "", "", short_count(self.sft_tokens), *cost, ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        total = (
            f"in all: {short_count(self.tokens)} tokens, {self.flops:.2g} FLOPs, "
            f"about {short_seconds(self.seconds(flops_per_second))} of ranking and training at "
            f"{short_flops(flops_per_second)}"
        )
        cache = f"cache: one sequence of {self.sequence_length} tokens, bfloat16 (states float32)"
        return "\n".join([*lines, total, cache, *list_machine(self)])

    def _teacher_row(self) -> tuple[str, ...]:
        layout = self.teacher.layout()
        parameters = short_count(self.teacher.parameters())
        cache = short_bytes(self.teacher.cache_bytes(layout, self.sequence_length))
        converted = str(len(layout.converted))
        return ("teacher", converted, "", "", parameters, "", cache, "", "", str(layout))

    def _align_row(self, memory: Memory, flops_per_second: float) -> tuple[str, ...]:
        seconds = self.align_flops * max(1, self.speed.gpus) / flops_per_second
        layers = len(self.teacher.layout().layers("attention"))
        size = self.teacher.mixer_parameters(self.mixer, {self.mixer: self.mixer_options})
        return (
            *("align", str(layers), "teacher", short_count(self.align_tokens)),
            *(short_count(layers * size), short_bytes(memory.total), ""),
            *(f"{self.align_flops:.2g}", short_seconds(seconds), f"a {self.mixer} for each layer"),
        )

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def to_json(self) -> dict[str, Any]:
        """Return the plain value that `from_json` reads back."""
        value: dict[str, Any] = plain(self)
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote.

        Raises:
            RunError: a key is missing or not known.
        """
        try:
            stages = tuple(
                StagePlan(
                    **{
                        **entry,
                        "layers": _tuple(entry["layers"]),
                        "memory": _memory(entry.get("memory")),
                    }
                )
                for entry in value["stages"]
            )
            read = {
                "stages": stages,
                "teacher": ModelShape.from_json(value["teacher"]),
                "sft_memory": _memory(value.get("sft_memory")),
                "align_memory": _memory(value.get("align_memory")),
                "speed": Speed(**value.get("speed", {})),
            }
            return cls(**{**value, **read})
        except (KeyError, TypeError) as error:
            raise RunError(f"not a plan file ({error}). Make it again with `plan`.") from error


def _row(stage: StagePlan, flops_per_second: float) -> tuple[str, ...]:
    flops = stage.flops + stage.ranking_flops
    return (
        stage.name,
        str(stage.converted),
        stage.start_from,
        short_count(stage.tokens),
        short_count(stage.parameters),
        short_bytes(stage.memory_bytes),
        short_bytes(stage.cache_bytes),
        f"{flops:.2g}",
        short_seconds(flops / flops_per_second),
        stage.layout or f"decided by {stage.rank_by}",
    )


def make_plan(recipe: Recipe, shape: ModelShape) -> Plan:
    """Lay out the stages of `recipe` on a teacher of `shape`; layers are decided later.

    The costs count which layers are converted, not where they are: all layers are alike.

    Raises:
        RecipeError: a stage converts more layers than there are, or rows exceed the positions.
    """
    options = {recipe.mixer.kind: recipe.mixer.options}
    length = recipe.data.sequence_length
    if length > shape.max_positions:
        raise recipe.error(
            "data.sequence_length",
            f"rows of {length} tokens, but the teacher has {shape.max_positions} positions. "
            f"Set data.sequence_length to at most {shape.max_positions}.",
        )
    forward = flops_of(recipe, shape, 0)
    speed = plan_speed(recipe)
    gpus = speed.gpus
    stages = []
    for stage in recipe.stages:
        _check_converted(recipe, shape, stage)
        layout = shape.student_layout(stage.converted, recipe.mixer.kind)
        memory = plan_memory(recipe, shape, stage, stage.converted, gpus) if gpus else None
        stages.append(
            StagePlan(
                name=stage.name,
                converted=stage.converted,
                tokens=stage.tokens,
                rank_by=str(stage.rank_by),
                start_from=str(stage.start_from),
                parameters=shape.parameters(layout, options),
                cache_bytes=shape.cache_bytes(layout, length, options=options),
                flops=stage.tokens * (3 * flops_of(recipe, shape, stage.converted) + forward),
                ranking_flops=ranking_flops(recipe, shape, stage),
                memory_bytes=round(memory.total) if memory else stage_bytes(recipe, shape, stage),
                memory=memory,
            )
        )
    sft = recipe.sft
    sft_flops, sft_memory = 0.0, None
    if sft:
        begun = 0 if sft.start_from == "teacher" else recipe.stage(str(sft.start_from)).converted
        sft_flops = 3 * sft.tokens * flops_of(recipe, shape, begun)
        sft_memory = plan_memory(recipe, shape, sft, begun, gpus) if gpus else None
    return Plan(
        name=recipe.name,
        teacher=shape,
        mixer=recipe.mixer.kind,
        mixer_options=dict(recipe.mixer.options),
        sequence_length=length,
        stages=tuple(stages),
        align_tokens=recipe.align.tokens if recipe.align else 0,
        align_flops=align_flops(recipe, shape),
        align_memory=plan_align_memory(recipe, shape),
        sft_tokens=sft.tokens if sft else 0,
        sft_flops=sft_flops,
        sft_memory=sft_memory,
        speed=speed,
    )


def _memory(value: Mapping[str, float] | None) -> Memory | None:
    return None if value is None else Memory(**value)


def _check_converted(recipe: Recipe, shape: ModelShape, stage: Stage) -> None:
    """Check that the teacher has the layers a stage converts, and had not converted them before."""
    place, already = f"stages.{stage.name}.converted", len(shape.layout().converted)
    if stage.converted > shape.num_layers:
        raise recipe.error(
            place,
            f"stage {stage.name} converts {stage.converted} layers, but the teacher has "
            f"{shape.num_layers}. Set converted to at most {shape.num_layers}, or check "
            "teacher.model.",
        )
    if stage.converted <= already:
        raise recipe.error(
            place,
            f"stage {stage.name} has {stage.converted} converted layers, but the teacher has "
            f"{already} already. Set converted to more than {already}.",
        )


def _tuple(value: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(value)
