"""What a plan asks of its machine, in words: memory of one GPU by what takes it, speed, money."""

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from hybridize.core.machine import Speed
from hybridize.core.memory import Memory
from hybridize.core.quantities import short_bytes, short_count, short_seconds

if TYPE_CHECKING:
    from hybridize.core.plan import Plan


def list_machine(plan: "Plan") -> Iterator[str]:
    """List the lines of a plan about its machine; none where the recipe names none."""
    if not plan.speed.gpus:
        return
    yield f"machine: {plan.speed.machine}"
    if plan.flops:
        yield from list_speed(plan)
    memories = list_memories(plan)
    if not memories:
        return
    parts = [field.name for field in fields(Memory)]
    rows = [("a GPU", *parts, "in all", "kept")]
    for name, memory in memories.items():
        sizes = [getattr(memory, part) for part in parts] + [memory.total, memory.total_kept]
        rows.append((name, *(short_bytes(size) for size in sizes)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield (
        "in all: with each layer computed again in the backward pass (recomputed); kept: with all "
        "activations in memory instead"
    )
    yield tell_fit(plan)


def list_speed(plan: "Plan") -> Iterator[str]:
    """List tokens a second of training, and the hours and the money of all that is planned."""
    trained = sum(stage.flops for stage in plan.stages) + plan.sft_flops
    if trained:
        seconds = trained / plan.speed.flops_per_second
        each = plan.tokens / seconds / plan.speed.gpus
        yield (
            f"speed: {short_count(plan.tokens / seconds)} tokens a second in training, "
            f"{short_count(each)} a GPU"
        )
    yield f"cost: {tell_cost(plan.speed, plan.flops)}"


def tell_cost(speed: Speed, flops: float) -> str:
    """Say how long so many FLOPs take, and what they cost where a price is known."""
    hours = speed.gpu_hours(flops)
    text = f"{short_seconds(flops / speed.flops_per_second)}, {hours:,.0f} GPU hours"
    return text if speed.price is None else f"{text}, {hours * speed.price:,.0f} in money"


def list_memories(plan: "Plan") -> dict[str, Memory]:
    """Map the alignment, each stage, and sft, to the memory of one GPU."""
    stages = {stage.name: stage.memory for stage in plan.stages}
    memories = {"align": plan.align_memory, **stages, "sft": plan.sft_memory}
    return {name: memory for name, memory in memories.items() if memory is not None}


def tell_fit(plan: "Plan") -> str:
    """Say whether the largest stage fits into a GPU, and with which activations."""
    memories = list_memories(plan)
    name = max(memories, key=lambda key: memories[key].total)
    memory, limit = memories[name], plan.speed.memory_bytes
    most = f"{short_bytes(memory.total)} in the largest stage, {name}"
    if limit is None:
        return f"memory: {most}"
    room = short_bytes(limit)
    if memory.total_kept <= limit:
        return f"memory: {most}; all activations fit into {room} too"
    if memory.total <= limit:
        return f"memory: {most}; it fits into {room} if layers are computed again"
    return f"memory: {most}, more than {room}: take more GPUs, or fewer rows_per_microbatch"
