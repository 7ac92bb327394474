"""The suites `lm-eval:...`: tasks of lm-evaluation-harness asked of models and servers."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hybridize.core.artifacts import hash_json, write_json
from hybridize.core.benchmarks import describe_missing, expand, find_benchmark
from hybridize.core.suites import HARNESS, need_harness
from hybridize.evaluation.endpoint import Endpoint
from hybridize.evaluation.harness import run_tasks
from hybridize.evaluation.results import Results
from hybridize.evaluation.sampling import Sampling
from hybridize.evaluation.subjects import InProcess, Subject, describe_versions
from hybridize.models.model import Model

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Of a function in memory, as Python prints it."""


@dataclass(frozen=True, kw_only=True)
class HarnessSettings:
    """Which tasks, and how much of each."""

    tasks: tuple[str, ...]
    """Tasks of the harness, of this package (hybridize_add, ...), or presets (apriel-h1)."""
    limit: int | None = None
    """Problems of each task; None asks all."""
    batch: int = 32
    """Texts continued at a time."""
    seed: int = 2
    """Of few-shot examples and draws."""
    max_new_tokens: int = 256
    """Tokens of an answer where a task does not say."""


@dataclass(frozen=True, kw_only=True)
class HarnessScore:
    """One metric of one task."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    problems: int
    task_version: str
    few_shot: int
    paper: float | None = None
    """What a paper reads for its student, where a preset names the task and metric."""


@dataclass(frozen=True, kw_only=True)
class HarnessResult:
    """What the harness found of one model."""

    model: str
    suite: str
    layout: str
    scores: list[HarnessScore]
    notes: list[str]
    tasks: dict[str, Any]
    """Each task's settings, as the harness has them."""
    prompts_sha256: dict[str, str]
    """Of each task's prompts."""
    answers_sha256: dict[str, str]
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
        lines = [f"{self.model}  {self.layout}", f"{'task':<26}{'metric':<32}value"]
        for one in self.scores:
            error = "" if one.standard_error is None else f" ± {one.standard_error:.3f}"
            lines.append(
                f"{one.task:<26}{one.metric:<32}{one.value:.3f}{error}  ({one.problems} problems)"
            )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__


def run_all(
    models: Sequence[Model | Subject], settings: HarnessSettings, out: Path | None = None
) -> Results[HarnessResult]:
    """Run the tasks for each model; write `out`/`<model>.json`, and its answers beside it.

    Raises:
        RecipeError: a task is not known.
        MachineError: the harness, or the data of a task, is not on this machine; with the command
            that fetches it.
    """
    need_harness()
    found = []
    for model in models:
        subject = InProcess.of(model) if isinstance(model, Model) else model
        assert isinstance(subject, InProcess | Endpoint), "the two kinds of subject"
        started = time.monotonic()
        raw = run_tasks(
            subject,
            expand(settings.tasks),
            limit=settings.limit,
            batch=settings.batch,
            seed=settings.seed,
            sampling=Sampling(max_new_tokens=settings.max_new_tokens, seed=settings.seed),
        )
        result = _read(subject, settings, raw, time.monotonic() - started)
        if out is not None:
            write_json(out / result.model / "answers.json", _answers(raw))
            write_json(out / result.model / "timing.json", {"seconds": result.seconds})
            write_json(out / f"{result.model}.json", result.to_json())
        found.append(result)
    return Results(found)


def _read(
    subject: InProcess | Endpoint, settings: HarnessSettings, raw: Mapping[str, Any], seconds: float
) -> HarnessResult:
    answers = _answers(raw)
    return HarnessResult(
        model=subject.name,
        suite=f"{HARNESS}{','.join(settings.tasks)}",
        layout=subject.layout,
        scores=[score for task in raw["results"] for score in _scores(task, raw)],
        notes=describe_missing(settings.tasks),
        tasks={task: _plain(config) for task, config in raw["configs"].items()},
        prompts_sha256={
            task: hash_json([one["prompt"] for one in rows]) for task, rows in answers.items()
        },
        answers_sha256={
            task: hash_json([one["answers"] for one in rows]) for task, rows in answers.items()
        },
        settings=asdict(settings),
        machine=subject.machine(),
        versions={**describe_versions(), "lm_eval": version("lm_eval")},
        seconds=seconds,
    )


def _scores(task: str, raw: Mapping[str, Any]) -> list[HarnessScore]:
    """Read the metrics of a task, `metric,filter` as the harness names them."""
    values = raw["results"][task]
    known = find_benchmark(task)
    scores = []
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{filtered}")
        scores.append(
            HarnessScore(
                task=task,
                metric=key,
                value=float(value),
                standard_error=float(error) if isinstance(error, int | float) else None,
                problems=int(raw.get("n-samples", {}).get(task, {}).get("effective", 0)),
                task_version=str(raw.get("versions", {}).get(task, "")),
                few_shot=int(raw.get("n-shot", {}).get(task) or 0),
                paper=known.student if known is not None and metric == known.metric else None,
            )
        )
    return scores


def _answers(raw: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return prompt, answers and right answer of each problem of each task."""
    return {
        task: [
            {
                "prompt": _plain(sample["arguments"]),
                "answers": _plain(sample["filtered_resps"]),
                "said": _plain(sample["resps"]),
                "target": _plain(sample["target"]),
            }
            for sample in sorted(samples, key=lambda sample: int(sample["doc_id"]))
        ]
        for task, samples in raw.get("samples", {}).items()
    }


def _plain(value: Any) -> Any:
    """Keep what JSON holds, without addresses in memory and folders of this machine."""
    match value:
        case Mapping():
            kept = {str(key): _plain(entry) for key, entry in value.items()}
            if isinstance(kept.get("config_source"), str):
                kept["config_source"] = Path(kept["config_source"]).name
            return kept
        case str():
            return ADDRESS.sub("", value)
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case int() | float() | bool() | None:
            return value
        case _:
            return getattr(value, "__name__", type(value).__name__)
