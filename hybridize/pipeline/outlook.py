"""What a run will do, stage by stage: layers, weights, trained parameters, memory and time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridize.core.budget import tell_cost
from hybridize.core.cost import activation_bytes, weight_bytes
from hybridize.core.layout import LETTERS, Layout
from hybridize.core.memory import Memory
from hybridize.core.plan import Plan, StagePlan
from hybridize.core.quantities import short_bytes, short_count, short_flops, short_seconds
from hybridize.core.recipe import Recipe
from hybridize.core.sections import LeaveOneOut
from hybridize.core.suites import tell_evaluation, tell_quantization
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.loading import load_outline
from hybridize.surgery.apply import outline, plan_weights
from hybridize.surgery.from_attention import PRINCIPLE
from hybridize.surgery.nodes import Concat, Node, Shapes
from hybridize.surgery.weight_map import WeightMap
from hybridize.training.optim import choose_parameters

PARTS = {
    "mixers": (".mixer.",),
    "attention": (".self_attn.",),
    "MLP": (".mlp.",),
    "norms": ("norm.",),
    "embeddings and head": ("embed_tokens.", "lm_head."),
}
"""Part of a student -> what the names of its parameters hold; the first that fits counts."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """A recipe and its plan, with every student as names and shapes without values."""

    recipe: Recipe
    plan: Plan
    """As far as it is decided."""
    assumed: Plan
    """The same, with the first layers that are free where the layers are not yet measured."""
    students: dict[str, HybridForCausalLM]
    """`teacher` and each stage -> model on the meta device, as `assumed` has it."""

    @classmethod
    def make(cls, recipe: Recipe, plan: Plan, teacher: HybridForCausalLM) -> "Outlook":
        """Work the students out; only names and shapes of `teacher` are read.

        Raises:
            ModelError: the mixer, or its options, do not fit the teacher.
        """
        assumed, students = plan, {"teacher": teacher}
        for stage in plan.stages:
            before = assumed.layout_of(stage.start_from)
            assert before is not None, "stages start from earlier ones"
            if stage.layers is None:
                count = stage.converted - len(before.converted)
                assumed = assumed.with_layers(stage.name, before.layers("attention")[:count])
            layout = assumed.layout_of(stage.name)
            assert layout is not None
            start = students[stage.start_from]
            students[stage.name] = outline(start, layout, options=recipe.mixer.options)
        return cls(recipe=recipe, plan=plan, assumed=assumed, students=students)

    @classmethod
    def read(cls, recipe: Recipe, plan: Plan, folder: Path) -> "Outlook":
        """Work the students out from the config.json of the teacher alone; see `make`."""
        return cls.make(recipe, plan, load_outline(folder))

    def text(self, stage: str | None = None, *, tensors: bool = False) -> str:
        """Print the plan and what each stage does, or that of one stage.

        Args:
            stage: its name, `align` or `sft`; None is all.
            tensors: print the whole weight map instead of that of one layer.

        Raises:
            RunError: no such stage.
            RecipeError: what a stage trains is nothing.
        """
        blocks = [self.plan.text()] if stage is None else []
        if stage not in (None, "sft", "align"):
            self.plan.stage(str(stage))
        if self.plan.align_memory is not None and stage in (None, "align"):
            blocks.append(self._aligning_text(self.plan.align_memory))
        blocks += [
            self._stage_text(entry, tensors, stage or self.plan.stages[0].name)
            for entry in self.plan.stages
            if stage in (None, entry.name)
        ]
        if self.recipe.sft and stage in (None, "sft"):
            blocks.append(self._sft_text(self.recipe.sft.start_from or "teacher"))
        if self.recipe.evaluate and stage is None:
            blocks.append("\n".join(["evaluate", *_indent(list(tell_evaluation(self.recipe)))]))
        if self.recipe.quantize and stage is None:
            blocks.append("\n".join(["quantize", *_indent(list(tell_quantization(self.recipe)))]))
        return "\n\n".join(blocks)

    def weight_map(self, stage: StagePlan) -> WeightMap:
        """Return where each tensor of a stage comes from, for the layers that are assumed."""
        return plan_weights(
            self.students[stage.start_from],
            self.students[stage.name].layout,
            init=self.recipe.mixer.init,
            options=self.recipe.mixer.options,
            source=self.students["teacher"],
        )

    def _stage_text(self, stage: StagePlan, tensors: bool, first: str) -> str:
        """Print one stage; the map of a layer only in the `first`, for it is always the same."""
        section, weights = self.recipe.stage(stage.name), self.weight_map(stage)
        start = self.assumed.layout_of(stage.start_from)
        end = self.assumed.layout_of(stage.name)
        assert start is not None and end is not None
        new = start.diff(end)
        head = f"{stage.name}: {len(new)} more of {end.num_layers} layers to {self.plan.mixer}"
        lines = [
            f"{head}, from {stage.start_from}, {short_count(stage.tokens)} tokens",
            *_align("before", [_strip(self.plan, stage.start_from)]),
            *_align("after", [_strip(self.plan, stage.name)]),
            *_align("layers", [self._explain_layers(stage)]),
            *_align("weights", _count_weights(weights)),
        ]
        if tensors:
            lines += ["  weight map", *_indent(weights.text().splitlines())]
        elif stage.name != first:
            lines += _align("one layer", [f"as in {first}"])
        elif new:
            lines += self._layer_text(stage, weights, new[0])
        lines += _align("train", _train_table(self.students[stage.name], section.train))
        lines += _align("memory", [_tell_memory(stage.memory) or self._tell_bytes(stage.name)])
        lines += _align("time", [self._tell_time(stage.tokens, stage.flops)])
        if stage.ranking_flops:
            seconds = short_seconds(stage.ranking_flops / self.plan.speed.flops_per_second)
            lines += _align("", [f"and about {seconds} of ranking before it"])
        return "\n".join(lines)

    def _aligning_text(self, memory: Memory) -> str:
        plan, section = self.plan, self.recipe.align
        assert section is not None
        layers = plan.teacher.layout().layers("attention")
        rows = short_count(section.tokens_per_step or plan.sequence_length)
        flops = plan.align_flops * max(1, plan.speed.gpus)
        alone = "; one process aligns, and the others wait" if plan.speed.gpus > 1 else ""
        states = memory.student + memory.gradients + memory.optimizer
        teacher, mixers, kept = map(short_bytes, (memory.teacher, states, memory.activations))
        how = f"the mixers, each against its layer's attention, {rows} tokens an update"
        lines = [
            f"align: a {plan.mixer} for each of {len(layers)} layers of the teacher, "
            f"{short_count(plan.align_tokens)} tokens",
            *_align("train", [f"{how}; they start {section.init.replace('_', ' ')}"]),
            *_align(
                "memory",
                [
                    f"{teacher} of the teacher, {mixers} of mixers, gradients and optimiser, about "
                    f"{kept} of activations"
                ],
            ),
            *_align("time", [self._tell_time(plan.align_tokens, flops) + alone]),
        ]
        return "\n".join(lines)

    def _sft_text(self, start: str) -> str:
        section, plan = self.recipe.sft, self.plan
        assert section is not None
        lines = [
            f"sft: fine-tuning of {start}, {short_count(section.tokens)} tokens",
            *_align("train", _train_table(self.students[start], section.train)),
            *_align("memory", [_tell_memory(plan.sft_memory) or self._tell_bytes("sft")]),
            *_align("time", [self._tell_time(section.tokens, plan.sft_flops)]),
        ]
        return "\n".join(lines)

    def _explain_layers(self, stage: StagePlan) -> str:
        """Say which ranking decides, or decided, the layers of a stage."""
        section = self.recipe.measurement(stage.rank_by)
        if isinstance(section, LeaveOneOut):
            amount = f"{short_count(section.tokens)} held-out tokens"
            if section.metric == "accuracy":
                amount = f"{section.problems} problems a kind"
            how = f"{section.metric} of the teacher without each {section.scope}, {amount}"
        elif section is not None:
            how = (
                f"{section.metric} of {stage.start_from} with each layer replaced, after "
                f"{section.steps} steps of {short_count(section.tokens_per_step)} tokens, "
                f"{short_count(section.tokens)} held-out tokens"
            )
        else:
            how = "not measured in this recipe"
        if stage.layers is None:
            return f"not yet measured; decided by {stage.rank_by}: {how}"
        chosen = ", ".join(map(str, stage.layers))
        return f"{chosen}; decided by {stage.rank_by}: {how}"

    def _layer_text(self, stage: StagePlan, weights: WeightMap, layer: int) -> list[str]:
        """Print where the tensors of one converted layer come from."""
        prefix, mixer = f"model.layers.{layer}.", self.recipe.mixer
        told = f"; {PRINCIPLE}" if mixer.init == "from_attention" else ""
        shapes = _get_shapes(self.students["teacher"], self.students[stage.name])
        lines = [f"layer {layer}, and each other alike{told}"]
        entries = [entry for entry in weights.changed if entry[0].startswith(prefix)]
        width = max((len(name) - len(prefix) for name, _ in entries), default=0)
        for name, node in entries:
            for row, (rows, origin) in enumerate(_list_origins(node, prefix, shapes)):
                label = "" if row else name.removeprefix(prefix)
                lines.append(f"{label:{width}}  {rows:>15}  <-  {origin}".rstrip())
        unused = [
            f"{name.partition(prefix)[2]}: {reason}"
            for name, reason in weights.dropped.items()
            if name.startswith(f"teacher:{prefix}")
        ]
        lines += [f"dropped  {text}" for text in unused] or ["dropped  nothing"]
        if mixer.calibrate:
            amount = short_count(mixer.calibrate)
            lines.append(f"then gates and output projections are fitted on {amount} tokens")
        return _align("one layer", lines)

    def _tell_bytes(self, name: str) -> str:
        """Say what training a stage, or sft, takes in one process, the trained weights counted."""
        recipe, shape = self.recipe, self.plan.teacher
        section = recipe.sft if name == "sft" else recipe.stage(name)
        assert section is not None
        student = str(recipe.sft.start_from) if name == "sft" and recipe.sft else name
        converted = 0 if student == "teacher" else self.plan.stage(student).converted
        chosen = choose_parameters(self.students[student], section.train).values()
        trained = sum(parameter.numel() for parameter in chosen)
        weights = weight_bytes(recipe, shape, converted, trained)
        activations = activation_bytes(recipe, shape, section, converted)
        return (
            f"{short_bytes(weights)} of weights, gradients and optimiser, about "
            f"{short_bytes(activations)} of activations; Python and torch come on top"
        )

    def _tell_time(self, tokens: int, flops: float) -> str:
        speed = self.plan.speed
        each = short_count(speed.flops_per_second * tokens / flops)
        if speed.gpus:
            return f"about {tell_cost(speed, flops)}: {each} tokens a second"
        return (
            f"about {short_seconds(flops / speed.flops_per_second)} at "
            f"{short_flops(speed.flops_per_second)}, {speed.machine}: {each} tokens a second"
        )


def _tell_memory(memory: Memory | None) -> str | None:
    """Say what training takes on one GPU; None where no machine is given."""
    if memory is None:
        return None
    states = memory.teacher + memory.student + memory.gradients + memory.optimizer
    return (
        f"{short_bytes(memory.total)} a GPU: {short_bytes(states)} of weights, gradients and "
        f"optimiser, {short_bytes(memory.gathered)} gathered, {short_bytes(memory.loss)} of loss, "
        f"{short_bytes(memory.recomputed)} of activations if layers are computed again, "
        f"{short_bytes(memory.activations)} otherwise"
    )


def _align(label: str, lines: Sequence[str]) -> list[str]:
    """Put a label before the first of some lines, and room of its width before the others."""
    return [f"  {'' if row else label:<10}{line}".rstrip() for row, line in enumerate(lines)]


def _indent(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _strip(plan: Plan, name: str) -> str:
    """Print a layout letter by letter, `?` where it is not decided, and what that leaves open."""
    layout = plan.layout_of(name)
    if layout is not None:
        return str(layout)
    stage = plan.stage(name)
    start = plan.layout_of(stage.start_from)
    known = start.mixers if start else ("attention",) * plan.teacher.num_layers
    letters = "".join("?" if kind == "attention" else LETTERS.get(kind, "*") for kind in known)
    groups = " ".join(letters[place : place + 10] for place in range(0, len(letters), 10))
    attention = Layout.uniform(len(letters) - stage.converted)
    return f"{groups}  {stage.converted} {LETTERS.get(plan.mixer, plan.mixer)}, " + (
        f"{attention.num_layers} A"
    )


def _count_weights(weights: WeightMap) -> list[str]:
    """Count what is copied, made and dropped."""
    counts = ", ".join(f"{count} {word}" for word, count in weights.counts.items())
    unused = sum(name.startswith("teacher:") for name in weights.dropped)
    return [
        f"{len(weights.entries)} tensors: {counts}",
        f"{len(weights.dropped) - unused} attention tensors give way to mixers; {unused} dropped "
        "without being read",
    ]


def _get_shapes(teacher: HybridForCausalLM, student: HybridForCausalLM) -> Shapes:
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for model in (teacher, student)
    ]
    return {"teacher": shapes[0], "student": shapes[1], "init": shapes[1], "aligned": shapes[1]}


def _list_origins(node: Node, prefix: str, shapes: Shapes) -> Iterator[tuple[str, str]]:
    """Yield (shape or rows, where they come from), a pair for each part that is joined."""
    parts = node.parts() if isinstance(node, Concat) else (node,)
    begin = 0
    for part in parts:
        size = part.shape(shapes)
        place = "x".join(map(str, size))
        if len(parts) > 1:
            place = f"rows {begin}:{begin + size[0]}"
        begin += size[0]
        text = str(part).replace(f"teacher:{prefix}", "").replace(prefix, "")
        yield place, "drawn or set" if text.startswith("init") else text


def _train_table(student: HybridForCausalLM, train: Sequence[str]) -> list[str]:
    """Count the parameters of each part: all, trained, frozen."""
    chosen = choose_parameters(student, train)
    counted = {part: [0, 0] for part in PARTS}
    for name, parameter in student.named_parameters():
        part = next((part for part, words in PARTS.items() if any(w in name for w in words)), None)
        pair = counted.setdefault(part or "other", [0, 0])
        pair[0 if name in chosen else 1] += parameter.numel()
    total = [sum(pair[column] for pair in counted.values()) for column in (0, 1)]
    lines = [f"{', '.join(train):<20} {'parameters':>14} {'trained':>14} {'frozen':>14}"]
    for part, (trained, frozen) in (*counted.items(), ("in all", total)):
        if trained + frozen:
            lines.append(f"{part:<20} {trained + frozen:>14,} {trained:>14,} {frozen:>14,}")
    return lines
