"""The suite `agreement`: students beside their teacher on the same held-out text."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from hybridize import tasks
from hybridize.core.artifacts import hash_json, write_json
from hybridize.core.errors import RecipeError
from hybridize.evaluation.agreement import Agreed, measure_agreement
from hybridize.evaluation.diagnosis import Document
from hybridize.evaluation.results import Results
from hybridize.evaluation.subjects import InProcess, Subject, describe_versions
from hybridize.models.model import Model
from hybridize.training.data import TokenSource, read_documents


@dataclass(frozen=True, kw_only=True)
class AgreementSettings:
    """The text that is read."""

    rows: int = 16
    """Held-out problems of each kind, with thinking and answer; or documents of other text."""
    seed: int = 2
    """Of the problems."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One student beside its teacher."""

    model: str
    teacher: str
    layout: str
    rows: list[Agreed]
    documents: int
    seed: int
    documents_sha256: str
    """Of all documents' token ids."""
    text: Mapping[str, Any] | None
    """Identity of the rows that were read; None are the built-in problems."""
    machine: dict[str, Any]
    versions: dict[str, str]
    suite: str = "agreement"
    seconds: float = field(compare=False, default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Return what the result file holds: everything but the time."""
        values = asdict(self)
        values.pop("seconds")
        return values

    def __str__(self) -> str:
        lines = [
            f"{self.model} beside {self.teacher}  {self.layout}",
            f"{'':<20}{'KL(t||s)':<20}{'KL(s||t)':<20}{'top-1 the same':<20}tokens",
        ]
        for row in self.rows:
            bound = "the rest" if row.by == "entropy" else ""
            bound = bound if row.value is None else f"< {row.value:g}"
            cells = [
                _cell(row.forward_kl, row.forward_kl_error),
                _cell(row.reverse_kl, row.reverse_kl_error),
                _cell(row.top1, row.top1_error),
            ]
            lines.append(f"{f'{row.by} {bound}':<20}{''.join(cells)}{row.tokens}")
        return "\n".join(lines)

    __repr__ = __str__


def _cell(value: float, error: float | None) -> str:
    told = "" if error is None else f" ± {error:.4f}"
    return f"{f'{value:.4f}{told}':<20}"


def run_all(
    models: Sequence[Model | Subject],
    settings: AgreementSettings,
    out: Path | None = None,
    *,
    text: TokenSource | None = None,
) -> Results[Agreement]:
    """Compare each model after the first with the first; write `out`/`<model>.json` of each.

    Args:
        text: rows whose documents are read, each alone, those of one pass at most; None takes the
            built-in problems. All that follows the first token that counts is completion.

    Raises:
        RecipeError: there are not two models, or one is not in this process.
        ModelError: their vocabularies differ.
    """
    subjects = [InProcess.of(one) if isinstance(one, Model) else one for one in models]
    inside = [one for one in subjects if isinstance(one, InProcess)]
    if len(inside) < 2 or len(inside) < len(models):
        raise RecipeError(
            "suite agreement compares students with their teacher, all in this process: "
            "hybridize eval TEACHER STUDENT... --suite agreement."
        )
    teacher, *students = inside
    if text is None:
        documents = _problems(teacher.tokenizer, settings)
    else:
        read = islice(read_documents(text), settings.rows)
        documents = [Document(*one) for one in read]
    found = []
    for student in students:
        started = time.monotonic()
        rows = measure_agreement(teacher.network.eval(), student.network.eval(), documents)
        one = Agreement(
            model=student.name,
            teacher=teacher.name,
            layout=student.layout,
            rows=rows,
            documents=len(documents),
            seed=settings.seed,
            documents_sha256=hash_json([list(one.ids) for one in documents]),
            text=None if text is None else text.identity,
            machine=student.machine(),
            versions=describe_versions(),
            seconds=time.monotonic() - started,
        )
        if out is not None:
            write_json(out / f"{one.model}.json", one.to_json())
            write_json(out / one.model / "timing.json", {"seconds": one.seconds})
        found.append(one)
    return Results(found)


def _problems(tokenizer: Any, settings: AgreementSettings) -> list[Document]:
    return [
        Document(
            tokenizer(f"{problem.prompt_text} {problem.completion_text}").input_ids,
            len(tokenizer(problem.prompt_text).input_ids),
        )
        for kind in tasks.KINDS
        for index in range(settings.rows)
        for problem in [tasks.make(kind, seed=settings.seed, index=index, split="heldout")]
    ]
