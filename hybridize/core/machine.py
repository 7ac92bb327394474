"""Machine: the GPUs a run is planned for, and the speed and money that follow from them.

Every formula, its source and how far it is from published runs: docs/cost.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from hybridize.core.catalog import did_you_mean
from hybridize.core.document import KeyPath
from hybridize.core.quantities import parse_bytes, short_bytes, short_flops
from hybridize.core.section import Count, NonNegative, Positive, Section, Share, Word

if TYPE_CHECKING:
    from hybridize.core.recipe import Recipe

GPUS = {
    "a100-40gb": (312e12, "40GiB"),
    "a100-80gb": (312e12, "80GiB"),
    "h100-sxm": (989.4e12, "80GiB"),
    "h100-pcie": (756e12, "80GiB"),
    "h200": (989.4e12, "139GiB"),
    "b200": (2250e12, "178GiB"),
    "l40s": (362e12, "48GiB"),
    "rtx-4090": (165.2e12, "24GiB"),
    "mi300x": (1307e12, "192GiB"),
}
"""GPU -> dense bfloat16 FLOP/s of its data sheet, and its memory."""

FLOPS_PER_SECOND = 1.2e11
"""What two processor cores sustain: 4 to 5 thousand tokens a second, as measured in distilling the
shipped teacher (12 layers of width 128), at 27 MFLOP a token. It stands where no machine is given;
`check --flops-per-second` gives another speed for once."""

Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]


class Machine(Section):
    """What the plan is estimated for; nothing that is computed depends on it. Two processor cores
    where the section is left out."""

    gpu: Word = "h100-sxm"
    """Kind of the GPUs; see `hybridize ls gpus`."""
    gpus: Count = 1
    """How many share the models, the optimizer and each step's rows."""
    mfu: Share = 0.4
    """Share of the peak that the models' own FLOPs reach; what is computed twice does not count."""
    peak_flops: Positive | None = None
    """Peak FLOP/s of one GPU; null means that of its kind, dense bfloat16."""
    memory: Bytes | None = None
    """Memory of one GPU, such as 80GiB; null means that of its kind."""
    price: NonNegative | None = None
    """Price of one GPU for an hour, in any currency; null leaves money out."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a run is planned to go, and where."""

    flops_per_second: float = FLOPS_PER_SECOND
    """Of all GPUs together, with what they waste taken off."""
    machine: str = "two processor cores"
    """The machine in words."""
    gpus: int = 0
    """0 is a processor."""
    memory_bytes: int | None = None
    """Memory of one GPU; None is not known."""
    price: float | None = None
    """Of one GPU for an hour; None is not known."""

    def gpu_hours(self, flops: float) -> float:
        """Return the hours of all GPUs together that so many FLOPs take."""
        return self.gpus * flops / self.flops_per_second / 3600


def plan_speed(recipe: "Recipe") -> Speed:
    """Work out the speed of the machine a recipe names, from its peak and the share it reaches.

    Where GPUs do not divide the rows of a step, some wait for the others at each step; the stage
    that wastes most counts.
    """
    machine = recipe.machine
    if machine is None:
        return Speed()
    peak, memory = GPUS.get(machine.gpu, (0.0, "1"))
    peak, memory_bytes = machine.peak_flops or peak, machine.memory or parse_bytes(memory)
    length = recipe.data.sequence_length
    trainings: list[Any] = [*recipe.stages, *([recipe.sft] if recipe.sft else [])]
    shares = (share_busy(each.tokens_per_step // length, machine.gpus) for each in trainings)
    busy = min(shares, default=1.0)
    return Speed(
        flops_per_second=machine.gpus * peak * machine.mfu * busy,
        machine=f"{machine.gpus} x {machine.gpu}, {machine.mfu * busy:.0%} of {short_flops(peak)} "
        f"and {short_bytes(memory_bytes)} each",
        gpus=machine.gpus,
        memory_bytes=memory_bytes,
        price=machine.price,
    )


def check_machine(recipe: "Recipe") -> Iterator[tuple[KeyPath, str]]:
    """List what of the machine cannot be: the path of a value, and a sentence about it."""
    machine = recipe.machine
    if machine is None:
        return
    if machine.gpu not in GPUS and (machine.peak_flops is None or machine.memory is None):
        hint = did_you_mean(machine.gpu, tuple(GPUS))
        yield (
            ("machine", "gpu"),
            f"{machine.gpu!r} is not one of the gpus. {hint}Known: {', '.join(GPUS)}; or give "
            "peak_flops and memory too.",
        )
    if not 0 < machine.mfu <= 1:
        yield ("machine", "mfu"), "machine.mfu is 0: nothing would ever be done. Write it like 40%."
    for name, training in [(s.name, s) for s in recipe.stages] + [("sft", recipe.sft)]:
        rows = training.tokens_per_step // recipe.data.sequence_length if training else machine.gpus
        if rows < machine.gpus:
            yield (
                ("machine", "gpus"),
                f"{name} has {rows} rows in a step for {machine.gpus} GPUs, so that some have "
                "nothing to do. Lower machine.gpus or raise tokens_per_step.",
            )


def share_busy(rows: int, gpus: int) -> float:
    """Return the share of GPU time that is not spent waiting, with so many rows in a step."""
    rows = max(1, rows)
    return rows / (gpus * -(-rows // gpus))
