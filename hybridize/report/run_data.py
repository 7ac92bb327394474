"""What a run folder says, read once into plain values; every part may still be missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridize.core.artifacts import RESULT, RunFolder, read_json, read_jsonl
from hybridize.core.errors import RunError
from hybridize.core.importance import Importance

Json = Mapping[str, Any]
_OF_A_MODEL = (RESULT, "begun.json", "answers.jsonl", "timing.json")


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
    sweep: Json | None
    """Values of `merge/sweep/result.json`: scores over the weight of the first model."""
    evaluations: Mapping[str, Json]
    """Model name (`teacher`, `h6`, `sft`) -> evaluation."""
    suites: Mapping[str, Mapping[str, Json]]
    """Suite (`recall`, `agreement`, `diagnosis`, `full`) -> model name -> what was found."""
    bench: Json | None
    quantised: Json | None
    """What `quantize/quantize.json` holds: the unquantised model and each type."""
    exports: Mapping[str, Json]
    """Folder in `export/` -> what `verification.json` says."""
    recipe: str | None
    resolved_recipe: str | None
    damaged: tuple[str, ...]
    """A sentence for each file that cannot be read."""

    def stage(self, name: str) -> StageData | None:
        """Return the stage of that name (`sft` too), or None."""
        if self.sft is not None and name == "sft":
            return self.sft
        return next((stage for stage in self.stages if stage.name == name), None)


def read_run(path: Path | str) -> RunData:
    """Read a run folder, finished or not; a damaged file is left out and named in `damaged`.

    Raises:
        RunError: no such folder, or nothing in it that a run writes.
    """
    folder = RunFolder(Path(path))
    known = ("recipe.yaml", "teacher.json", "status.json", "plan.json", "stages", "eval", "bench")
    if not any((folder.path / name).exists() for name in known):
        raise RunError(
            f"{folder.path} is not a run folder: it has none of {', '.join(known)}. "
            "Give the folder that `hybridize run` wrote."
        )
    reader = _Reader(folder.path)
    teacher = reader.json(folder.teacher, ("num_layers",))
    recipe = _text(folder.recipe)
    stages = sorted(stage for stage in folder.path.glob("stages/*") if stage.is_dir())
    return RunData(
        path=folder.path,
        name=_run_name(recipe) or folder.path.resolve().name,
        teacher=teacher,
        environment=reader.json(folder.environment),
        status=reader.json(folder.status, ("nodes",)),
        plan=reader.json(folder.plan, ("stages",)),
        align=reader.values(folder.align),
        importance=_in_stage_order(reader.importance(folder.path / "importance"), stages),
        stages=tuple(reader.stage(stage, stage.name.partition("-")[2]) for stage in stages),
        sft=reader.stage(folder.sft, "sft") if folder.sft.is_dir() else None,
        merge=reader.values(folder.merge),
        sweep=reader.values(folder.merge / "sweep"),
        evaluations=_in_order(
            reader.each(folder.path / "eval", ("kinds", "overall")),
            [stage.name.partition("-")[2] for stage in stages],
        ),
        suites=reader.suites(
            folder.path / "eval",
            teacher=Path(str((teacher or {}).get("path", "shipped"))).name,
            stages=[stage.name.partition("-")[2] for stage in stages],
        ),
        bench=reader.json(folder.bench, ("models",)),
        quantised=reader.json(folder.quantize / "quantize.json", ("rows", "settings")),
        exports={
            file.parent.name: found
            for file in sorted(folder.path.glob("export/*/verification.json"))
            if (found := reader.json(file, ("checks",))) is not None
        },
        recipe=recipe,
        resolved_recipe=_text(folder.resolved_recipe),
        damaged=tuple(reader.damaged),
    )


class _Reader:
    """Reads the files of a run and notes those that are damaged."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.damaged: list[str] = []

    def _note(self, path: Path, why: str) -> None:
        self.damaged.append(f"{path.relative_to(self.run)} is damaged and left out: {why}.")

    def json(self, path: Path, needed: tuple[str, ...] = ()) -> Json | None:
        """Read a JSON object with the keys that are needed; None where there is none."""
        if not path.is_file():
            return None
        try:
            value = read_json(path)
        except RunError:
            self._note(path, "it is not whole JSON")
            return None
        if not isinstance(value, dict):
            self._note(path, "it does not hold a JSON object")
            return None
        lacking = [key for key in needed if value.get(key) is None]
        if lacking:
            self._note(path, f"it has no {', '.join(lacking)}")
            return None
        return value

    def values(self, folder: Path) -> Json | None:
        """Read what the node in a folder found; None while it is not done."""
        result = self.json(folder / RESULT, ("values",))
        return None if result is None else result["values"]

    def each(self, folder: Path, needed: tuple[str, ...] = ()) -> dict[str, Json]:
        """Read all JSON files right in a folder, by their names."""
        found = {path.stem: self.json(path, needed) for path in sorted(folder.glob("*.json"))}
        return {name: value for name, value in found.items() if value is not None}

    def suites(
        self, evals: Path, *, teacher: str, stages: Sequence[str]
    ) -> dict[str, dict[str, Json]]:
        """Read the folders in `eval/` that hold a file a model, which those of models do not.

        Models are put in the order of the run; a teacher named after its folder is `teacher`.
        """
        suites: dict[str, dict[str, Json]] = {}
        for path in sorted(evals.glob("*/")):
            found = {} if _is_of_a_model(path) else self.each(path)
            if teacher in found and "teacher" not in found:
                found["teacher"] = found.pop(teacher)
            if found:
                found = {name: {**value, "model": name} for name, value in found.items()}
                suites[path.name] = _in_order(found, stages)
        return suites

    def importance(self, folder: Path) -> dict[str, Importance]:
        """Read the measurements of importance."""
        found: dict[str, Importance] = {}
        for path in sorted(folder.glob("*.json")):
            value = self.json(path, ("scores",))
            try:
                if value is not None:
                    found[path.stem] = Importance.from_json(dict(value))
            except RunError as error:
                self._note(path, str(error).rstrip("."))
        return found

    def stage(self, folder: Path, name: str) -> StageData:
        """Read a stage, as far as it came."""
        lines: list[Json] = []
        path = folder / "metrics.jsonl"
        try:
            lines.extend(read_jsonl(path))
        except RunError:
            self._note(path, f"line {len(lines) + 1} is not JSON; the lines before it are shown")
        return StageData(name=name, values=self.values(folder), metrics=tuple(lines))


def _in_order(found: Mapping[str, Json], stages: Sequence[str]) -> dict[str, Json]:
    """Put models in the order of the run, those it does not know last."""
    order = ["teacher", *stages, "sft", "merge"]
    names = sorted(found, key=lambda name: order.index(name) if name in order else len(order))
    return {name: found[name] for name in names}


def _is_of_a_model(folder: Path) -> bool:
    """Tell the folder with the answers of one model, finished or not, from that of a suite."""
    return any((folder / name).exists() for name in _OF_A_MODEL)


def _in_stage_order(
    found: Mapping[str, Importance], stages: Sequence[Path]
) -> dict[str, Importance]:
    """Sort measurements as they were made: of the teacher first, then before each stage."""
    order = [stage.name.partition("-")[2] for stage in stages]

    def place(name: str) -> tuple[int, str]:
        stage = name.partition("-")[2]
        late = order.index(stage) if stage in order else len(order)
        return (late if stage else -1), name

    return {name: found[name] for name in sorted(found, key=place)}


def _run_name(recipe: str | None) -> str | None:
    for line in (recipe or "").splitlines():
        if line.startswith("name:"):
            return line.partition(":")[2].partition(" #")[0].strip().strip("\"'")
    return None


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
