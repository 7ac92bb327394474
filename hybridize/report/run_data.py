"""What a run folder says, read once into plain values; every part may still be missing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridize.core.artifacts import RunFolder, read_json, read_jsonl, read_result
from hybridize.core.errors import RunError
from hybridize.core.importance import Importance

Json = Mapping[str, Any]
SUITES = ("recall", "agreement", "diagnosis")
"""Folders in eval/ with the results of suites that are shown beside the scores."""


@dataclass(frozen=True, kw_only=True)
class StageData:
    """One folder of `stages/`, or `sft/`."""

    name: str
    values: Json | None
    """The values of `result.json`; None while the stage is unfinished."""
    metrics: tuple[Json, ...]
    """The lines of `metrics.jsonl`; tokens count from the start of this stage."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Everything a report is made of. A part that is not there yet is None or empty."""

    path: Path
    name: str
    teacher: Json | None
    environment: Json | None
    status: Json | None
    plan: Json | None
    align: Json | None
    """Values of the alignment's `result.json`."""
    importance: Mapping[str, Importance]
    """File stem (`leave_one_out`, `replace_one-h8`) -> measurement."""
    stages: tuple[StageData, ...]
    sft: StageData | None
    merge: Json | None
    """Values of the merge's `result.json`."""
    evaluations: Mapping[str, Json]
    """Model name (`teacher`, `h6`, `sft`) -> evaluation."""
    suites: Mapping[str, Mapping[str, Json]]
    """Suite (`recall`, `agreement`, `diagnosis`) -> model name -> what was found."""
    bench: Json | None
    recipe: str | None
    resolved_recipe: str | None

    def stage(self, name: str) -> StageData | None:
        """Return the stage of that name (`sft` too), or None."""
        if self.sft is not None and name == "sft":
            return self.sft
        return next((stage for stage in self.stages if stage.name == name), None)


def read_run(path: Path | str) -> RunData:
    """Read a run folder, finished or not.

    Raises:
        RunError: no such folder, nothing in it that a run writes, or a damaged file.
    """
    folder = RunFolder(Path(path))
    known = ("recipe.yaml", "teacher.json", "status.json", "plan.json", "stages", "eval", "bench")
    if not any((folder.path / name).exists() for name in known):
        raise RunError(
            f"{folder.path} is not a run folder: it has none of {', '.join(known)}. "
            "Give the folder that `hybridize run` wrote."
        )
    recipe = _text(folder.recipe)
    evals = folder.path / "eval"
    stages = sorted(stage for stage in folder.path.glob("stages/*") if stage.is_dir())
    return RunData(
        path=folder.path,
        name=_run_name(recipe) or folder.path.resolve().name,
        teacher=_json(folder.teacher),
        environment=_json(folder.environment),
        status=_json(folder.status),
        plan=_json(folder.plan),
        align=_values(folder.align),
        importance={
            file.stem: Importance.from_json(read_json(file))
            for file in sorted(folder.path.glob("importance/*.json"))
        },
        stages=tuple(_stage(stage, stage.name.partition("-")[2]) for stage in stages),
        sft=_stage(folder.sft, "sft") if folder.sft.is_dir() else None,
        merge=_values(folder.merge),
        evaluations={
            file.stem: read_json(file) for file in sorted(folder.path.glob("eval/*.json"))
        },
        suites={
            suite: {path.stem: read_json(path) for path in sorted((evals / suite).glob("*.json"))}
            for suite in SUITES
        },
        bench=_json(folder.bench),
        recipe=recipe,
        resolved_recipe=_text(folder.resolved_recipe),
    )


def _run_name(recipe: str | None) -> str | None:
    for line in (recipe or "").splitlines():
        if line.startswith("name:"):
            return line.partition(":")[2].partition(" #")[0].strip().strip("\"'")
    return None


def _stage(folder: Path, name: str) -> StageData:
    metrics = tuple(read_jsonl(folder / "metrics.jsonl"))
    return StageData(name=name, values=_values(folder), metrics=metrics)


def _values(folder: Path) -> Json | None:
    result = read_result(folder)
    return None if result is None else result.values


def _json(path: Path) -> Json | None:
    if not path.exists():
        return None
    value = read_json(path)
    if not isinstance(value, dict):
        raise RunError(f"{path} does not hold a JSON object. Remove it to make it again.")
    return value


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
