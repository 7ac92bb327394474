"""Look at a student's layers one by one: contribution, memory, distance to the teacher.

Legend: B batch, T tokens, D model width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridize.evaluation.memory import Memory, describe_memory, find_decay_rates
from hybridize.models.hybrid import HybridForCausalLM, without

TOKENS_AT_ONCE = 256
"""Places whose logits are there at a time, for the sake of memory."""
EDGES = (16, 64, 256, 1024, 4096, 16_384)
"""Positions are grouped by the smallest of these that lies above them."""


@dataclass(frozen=True)
class Document:
    """Token ids, and how many of them are the prompt."""

    ids: Sequence[int]
    prompt_tokens: int


@dataclass(kw_only=True)
class LayerReport:
    """What was seen of one layer."""

    layer: int
    mixer: str
    output_share: float
    """Root mean square of what the mixer adds, over that of the residual stream it adds to."""
    contribution_nats: float | None = None
    """What the loss on completions (nats per token) gains without the mixer; None: attention."""
    contribution_accuracy: float | None = None
    """Share of problems answered right that is lost without the mixer; None: not asked."""
    memory: Memory | None = None
    own_error: float | None = None
    """Distance of the mixer's output to that of the teacher's attention, both fed the teacher's
    own hidden states, over the latter's size; None without a teacher."""
    error: float | None = None
    """Distance of the residual stream after the layer to the teacher's, over the latter's size."""
    error_by_position: dict[str, float] = field(default_factory=dict)
    """Position below -> the same, over those tokens alone."""
    zero_tensors: list[str] = field(default_factory=list)
    """Weights of the mixer that are all zero."""


class Sums:
    """Squares added up, for a ratio of sizes."""

    def __init__(self) -> None:
        self.top, self.bottom = 0.0, 0.0

    def add(self, top_BTD: Tensor, bottom_BTD: Tensor) -> None:
        """Add the squares of two tensors."""
        self.top += top_BTD.double().square().sum().item()
        self.bottom += bottom_BTD.double().square().sum().item()

    @property
    def ratio(self) -> float:
        """Root of the quotient; 0 where nothing was added."""
        return (self.top / self.bottom) ** 0.5 if self.bottom > 0 else 0.0


@dataclass
class Trace:
    """Input and output of each layer's mixer, and the residual stream, in one forward pass."""

    mixed: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Layer -> what its mixer got (normed) and gave."""
    streams: list[Tensor] = field(default_factory=list)
    """Input of each layer, then the final normed states."""
    context: Any = None


@torch.no_grad()
def look(
    student: HybridForCausalLM,
    documents: Sequence[Document],
    teacher: HybridForCausalLM | None = None,
) -> list[LayerReport]:
    """Report on every layer of `student`, without generating.

    Args:
        documents: each is read alone from its first token.
        teacher: what converted layers are compared with; has the same geometry.
    """
    count = len(student.model.layers)
    shares, own, errors = ([Sums() for _ in range(count)] for _ in range(3))
    by_position: list[dict[str, Sums]] = [{} for _ in range(count)]
    for document in documents:
        ids_1T = torch.tensor([list(document.ids)], device=student.device)
        trace = trace_pass(student, ids_1T)
        theirs = None if teacher is None else trace_pass(teacher, ids_1T.to(teacher.device))
        for layer in range(count):
            shares[layer].add(trace.mixed[layer][1], trace.streams[layer])
            if theirs is None:
                continue
            before_BTD, wanted_BTD = (part.to(student.device) for part in theirs.mixed[layer])
            if student.layout.mixers[layer] != "attention":
                made_BTD = student.model.layers[layer].mix(before_BTD, trace.context)
                own[layer].add(made_BTD - wanted_BTD, wanted_BTD)
            if layer < count - 1:
                goal_BTD = theirs.streams[layer + 1].to(student.device)
                _add_errors(trace.streams[layer + 1], goal_BTD, errors[layer], by_position[layer])
    converted = set(student.layout.converted)
    memories = find_memories(student, max(documents, key=lambda one: len(one.ids)))
    losses = measure_contributions(student, documents)
    return [
        LayerReport(
            layer=layer,
            mixer=kind,
            output_share=shares[layer].ratio,
            contribution_nats=losses.get(layer),
            memory=memories.get(layer),
            own_error=own[layer].ratio if teacher is not None and layer in converted else None,
            error=errors[layer].ratio if teacher is not None and layer < count - 1 else None,
            error_by_position={edge: sums.ratio for edge, sums in by_position[layer].items()},
            zero_tensors=find_zero_tensors(student, layer),
        )
        for layer, kind in enumerate(student.layout.mixers)
    ]


@torch.no_grad()
def trace_pass(model: HybridForCausalLM, ids_BT: Tensor) -> Trace:
    """Read tokens and keep what went through each mixer."""
    trace = Trace()
    with _listening(model, trace):
        model.hidden(ids_BT, states=trace.streams)
    return trace


@contextmanager
def _listening(model: HybridForCausalLM, trace: Trace) -> Iterator[None]:
    """Keep what `mix` of each layer gets and gives, for the time of a `with` block."""

    def listen(layer: int, mix: Any) -> Any:
        def heard(normed_BTD: Tensor, ctx: Any) -> Tensor:
            made_BTD: Tensor = mix(normed_BTD, ctx)
            trace.mixed[layer], trace.context = (normed_BTD, made_BTD), ctx
            return made_BTD

        return heard

    layers: list[Any] = list(model.model.layers)
    for number, layer in enumerate(layers):
        layer.mix = listen(number, layer.mix)
    try:
        yield
    finally:
        for layer in layers:
            del layer.mix


def _add_errors(
    made_BTD: Tensor, goal_BTD: Tensor, whole: Sums, by_position: dict[str, Sums]
) -> None:
    difference_BTD = made_BTD - goal_BTD
    whole.add(difference_BTD, goal_BTD)
    low = 0
    for edge in EDGES:
        if low >= made_BTD.shape[1]:
            return
        part = slice(low, edge)
        sums = by_position.setdefault(str(edge), Sums())
        sums.add(difference_BTD[:, part], goal_BTD[:, part])
        low = edge


@torch.no_grad()
def measure_contributions(
    student: HybridForCausalLM, documents: Sequence[Document]
) -> dict[int, float]:
    """Return what the loss on completions gains without the mixer of each converted layer."""
    whole = _loss(student, documents)
    gains = {}
    for layer in student.layout.converted:
        with without(student, layer, "attention"):
            gains[layer] = _loss(student, documents) - whole
    return gains


def _loss(student: HybridForCausalLM, documents: Sequence[Document]) -> float:
    """Return the mean cross-entropy of the completions' tokens, in nats."""
    total, count = 0.0, 0
    for document in documents:
        ids_1T = torch.tensor([list(document.ids)], device=student.device)
        hidden_TD = student.hidden(ids_1T)[0, document.prompt_tokens - 1 : -1]
        targets_T = ids_1T[0, document.prompt_tokens :]
        parts = zip(hidden_TD.split(TOKENS_AT_ONCE), targets_T.split(TOKENS_AT_ONCE), strict=True)
        for part_TD, part_T in parts:
            logits_TV = student.lm_head(part_TD).float()
            total += F.cross_entropy(logits_TV, part_T, reduction="sum").item()
        count += len(targets_T)
    return total / max(1, count)


@torch.no_grad()
def find_memories(student: HybridForCausalLM, document: Document) -> dict[int, Memory]:
    """Return decay and state of each converted layer that has them, on one document."""
    ids_1T = torch.tensor([list(document.ids)], device=student.device)
    middle = max(1, ids_1T.shape[1] // 2)
    caches = [
        student(part, use_cache=True, logits_to_keep=1).past_key_values
        for part in (ids_1T[:, :middle], ids_1T)
    ]
    trace = trace_pass(student, ids_1T)
    found = {}
    for layer in student.layout.converted:
        mixer = student.model.layers[layer].mixer
        kind = student.layout.mixers[layer]
        rates = find_decay_rates(mixer, kind, trace.mixed[layer][0])
        if rates is not None:
            states = [cache.get_state(layer) for cache in caches]
            memory = describe_memory(rates, *states)
            if memory is not None:
                found[layer] = memory
    return found


def find_zero_tensors(student: HybridForCausalLM, layer: int) -> list[str]:
    """Name the weight matrices of a layer's mixer that are all zero; none where it is attention."""
    mixer = getattr(student.model.layers[layer], "mixer", None)
    if mixer is None:
        return []
    return [
        f"model.layers.{layer}.mixer.{name}"
        for name, tensor in mixer.named_parameters()
        if tensor.ndim > 1 and not bool(tensor.any())
    ]
