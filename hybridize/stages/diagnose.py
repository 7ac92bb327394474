"""Diagnose a student layer by layer, and name the layers that stand out."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

from hybridize import tasks
from hybridize.core.artifacts import hash_json, write_json
from hybridize.core.errors import ModelError
from hybridize.evaluation.answers import answer, problems
from hybridize.evaluation.diagnosis import Document, LayerReport, look
from hybridize.evaluation.findings import find_faults
from hybridize.evaluation.subjects import InProcess, describe_versions
from hybridize.models.hybrid import without
from hybridize.models.model import Model
from hybridize.training.data import TokenSource, read_documents


@dataclass(frozen=True, kw_only=True)
class DiagnoseSettings:
    """What the layers are looked at on."""

    tokens: int = 8192
    """Held-out tokens, at least, where there are as many; documents are read whole."""
    problems: int = 0
    """Problems of each kind answered with each mixer left out; 0 asks none."""
    max_new_tokens: int = 192
    """Token limit of one answer."""
    batch: int = 32
    """Problems answered at once."""
    seed: int = 4
    """Of documents and problems."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was seen of each layer, and what stands out."""

    model: str
    teacher: str | None
    layout: str
    findings: list[str]
    layers: list[LayerReport]
    tokens: int
    documents_sha256: str
    text: Mapping[str, Any] | None
    """Identity of the rows that were read; None are the built-in problems."""
    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    seconds: float = field(compare=False, default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Return what the result file holds: everything but the time."""
        values = asdict(self)
        values.pop("seconds")
        return values

    def __str__(self) -> str:
        beside = f" beside {self.teacher}" if self.teacher else ""
        lines = [f"{self.model}{beside}  {self.layout}", _HEAD]
        lines += [_row(one) for one in self.layers]
        told = [f"found: {text}" for text in self.findings]
        return "\n".join([*lines, *(told or ["found: no layer stands out."])])

    __repr__ = __str__


_HEAD = (
    "layer  mixer        adds    loss without  right without  memory         "
    "state  own error  error"
)


def _row(one: LayerReport) -> str:
    memory = one.memory
    cells = [
        f"{one.layer:<5}  {one.mixer:<11}  {one.output_share:<6.3f}",
        _text(one.contribution_nats, "+.4f", 12),
        _text(_negative(one.contribution_accuracy), "+.3f", 13),
        _text(None if memory is None else memory.median_tokens, ".0f", 13),
        _text(None if memory is None else memory.state_rank, ".2f", 5),
        _text(one.own_error, ".3f", 9),
        _text(one.error, ".3f", 5),
    ]
    return "  ".join(cells).rstrip()


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _text(value: float | None, form: str, width: int) -> str:
    return f"{'-' if value is None else format(value, form):<{width}}"


def run(
    model: Model,
    settings: DiagnoseSettings,
    out: Path | None = None,
    *,
    teacher: Model | None = None,
    text: TokenSource | None = None,
) -> Diagnosis:
    """Look at every layer of `model`; write `out`.json where `out` is given.

    Args:
        teacher: what hidden states are compared with.
        text: rows whose documents are read, those of one pass at most; None takes the built-in
            problems.

    Raises:
        ModelError: no tokenizer, or a teacher of another geometry.
    """
    started = time.monotonic()
    tokenizer = model.need_tokenizer()
    if teacher is not None:
        _check_geometry(model, teacher)
    if text is None:
        drawn, together = _draw(tokenizer, settings.seed), len(tasks.KINDS)
    else:
        drawn, together = (Document(*one) for one in read_documents(text)), 1
    documents = _take(drawn, settings.tokens, together)
    network = model.network.eval()
    layers = look(network, documents, None if teacher is None else teacher.network.eval())
    if settings.problems:
        _add_accuracy(model, layers, settings)
    diagnosis = Diagnosis(
        model=model.name,
        teacher=None if teacher is None else teacher.name,
        layout=str(model.layout),
        findings=find_faults(layers),
        layers=layers,
        tokens=sum(len(one.ids) for one in documents),
        documents_sha256=hash_json([list(one.ids) for one in documents]),
        text=None if text is None else text.identity,
        settings=asdict(settings),
        machine=InProcess.of(model).machine(),
        versions=describe_versions(),
        seconds=time.monotonic() - started,
    )
    if out is not None:
        write_json(out / "timing.json", {"seconds": diagnosis.seconds})
        write_json(out.with_name(f"{out.name}.json"), diagnosis.to_json())
    return diagnosis


def _check_geometry(model: Model, teacher: Model) -> None:
    ours, theirs = model.network.config, teacher.network.config
    for key in ("num_hidden_layers", "hidden_size", "vocab_size"):
        if getattr(ours, key) != getattr(theirs, key):
            raise ModelError(
                f"{model.name} has {key} {getattr(ours, key)}, {teacher.name} has "
                f"{getattr(theirs, key)}. Compare a student with its own teacher."
            )


def _take(documents: Iterator[Document], tokens: int, together: int) -> list[Document]:
    """Take documents, so many together, until there are enough tokens or no more documents."""
    taken: list[Document] = []
    while part := list(islice(documents, together)):
        taken += part
        if sum(len(one.ids) for one in taken) >= tokens:
            break
    return taken


def _draw(tokenizer: Any, seed: int) -> Iterator[Document]:
    """Draw held-out problems with their answers without end, each kind in turn."""
    for index in count():
        for kind in tasks.KINDS:
            problem = tasks.make(kind, seed=seed, index=index, split="heldout")
            prompt = len(tokenizer(problem.prompt_text).input_ids)
            ids = tokenizer(f"{problem.prompt_text} {problem.completion_text}").input_ids
            yield Document(ids, prompt)


def _add_accuracy(model: Model, layers: Sequence[LayerReport], settings: DiagnoseSettings) -> None:
    """Note how many problems each mixer is needed for, by answering without it."""
    asked = problems(tuple(tasks.KINDS), num_per_kind=settings.problems, seed=settings.seed)

    def share_right() -> float:
        answers = answer(
            model.network,
            model.need_tokenizer(),
            asked,
            max_new_tokens=settings.max_new_tokens,
            batch=settings.batch,
        )
        return sum(one.right for one in answers) / len(answers)

    whole = share_right()
    for layer in model.layout.converted:
        with without(model.network, layer, "attention"):
            layers[layer].contribution_accuracy = whole - share_right()


diagnose = run
"""The public name of `run`."""
