"""Evaluate one model by generation on held-out problems, log-likelihood beside it."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hybridize.core.artifacts import write_json, write_text
from hybridize.core.errors import RecipeError
from hybridize.evaluation.answers import KindScore, answer, problems, score
from hybridize.models.model import Model

SUITES: dict[str, tuple[str, ...]] = {
    "tasks": ("recall", "add", "chain", "sort", "edit"),
    "recall": ("recall",),
}
"""Suite -> the kinds of problem in it."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What is asked of a model; the same settings ask every model the same problems."""

    suite: str = "tasks"
    """Name in SUITES, or `package.module:name` of a tuple of kinds."""
    problems: int = 100
    """Held-out problems of each kind."""
    max_new_tokens: int = 192
    """Token limit of one answer; an answer not closed by then is wrong."""
    batch: int = 64
    """Problems generated at a time."""
    seed: int = 2
    """Seed of the problems."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of one model, per kind and overall."""

    model: str
    suite: str
    layout: str
    tokens: int
    """Tokens the model was trained on since the teacher."""
    kinds: dict[str, KindScore]
    overall: KindScore
    sampling: dict[str, Any]
    seed: int
    seconds: float

    def __str__(self) -> str:
        rows = [*self.kinds.items(), ("overall", self.overall)]
        lines = [f"{self.model}  {self.layout}", f"{'':<10}accuracy      log-likelihood  tokens"]
        lines += [
            f"{name:<10}{one.accuracy:.3f} ± {one.standard_error:.3f}  "
            f"{one.log_likelihood:>10.4f}  {one.mean_tokens:>6.0f}"
            for name, one in rows
        ]
        return "\n".join(lines)

    __repr__ = __str__


def run(
    model: Model,
    settings: EvaluateSettings,
    out: Path | None = None,
    *,
    name: str,
    tokens: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Ask `model` the held-out problems and score what it generates.

    Writes `out`.json, and `out`/answers.jsonl with every generated answer, if `out` is given.
    """
    started = time.monotonic()
    kinds = _find_suite(settings.suite)
    asked = problems(kinds, num_per_kind=settings.problems, seed=settings.seed)
    answers = answer(
        model.network.eval(),
        model.need_tokenizer(),
        asked,
        max_new_tokens=settings.max_new_tokens,
        batch=settings.batch,
        progress=progress,
    )
    scores, overall = score(answers)
    evaluation = Evaluation(
        model=name,
        suite=settings.suite,
        layout=str(model.layout),
        tokens=tokens,
        kinds=scores,
        overall=overall,
        sampling={"temperature": 0.0, "max_new_tokens": settings.max_new_tokens},
        seed=settings.seed,
        seconds=time.monotonic() - started,
    )
    if out is not None:
        lines = [json.dumps(one.to_json(), ensure_ascii=False) for one in answers]
        write_text(out / "answers.jsonl", "\n".join(lines) + "\n")
        write_json(out.with_name(f"{out.name}.json"), asdict(evaluation))
    return evaluation


def _find_suite(name: str) -> tuple[str, ...]:
    """Return the kinds of problem of a suite.

    Raises:
        RecipeError: there is no such suite.
    """
    if name in SUITES:
        return SUITES[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise RecipeError(f"{name!r} is not a suite (known: {', '.join(SUITES)}).")
    try:
        return tuple(getattr(import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"suite {name!r} cannot be imported ({error}).") from error
