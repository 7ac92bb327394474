"""The run folder: where each thing is, how it is written whole or not at all, how done is told."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from hybridize.core.errors import MachineError, RunError

RESULT = "result.json"


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run folder; nothing is created by asking for a path."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def recipe(self) -> Path:
        """The recipe as given, byte for byte."""
        return self.path / "recipe.yaml"

    @property
    def resolved_recipe(self) -> Path:
        """The recipe with every default filled in."""
        return self.path / "recipe.resolved.yaml"

    @property
    def environment(self) -> Path:
        """Versions, device, seed and command line."""
        return self.path / "environment.json"

    @property
    def status(self) -> Path:
        """The state of each node: done, running, stale or to do."""
        return self.path / "status.json"

    @property
    def teacher(self) -> Path:
        """Family and geometry of the teacher."""
        return self.path / "teacher.json"

    @property
    def plan(self) -> Path:
        """Layouts and budgets of all stages."""
        return self.path / "plan.json"

    @property
    def tokens(self) -> Path:
        """Tokens of the files that are trained and measured on."""
        return self.path / "tokens"

    @property
    def align(self) -> Path:
        """Folder of the mixers that were aligned, one file a layer."""
        return self.path / "align"

    def importance(self, name: str) -> Path:
        """Scores of one measurement, such as `leave_one_out` or `replace_one-h8`."""
        return self.path / "importance" / f"{name}.json"

    def stage(self, index: int, name: str) -> Path:
        """Folder of a stage; `index` counts from 0, the folder from 01."""
        return self.path / "stages" / f"{index + 1:02d}-{name}"

    @property
    def sft(self) -> Path:
        """Folder of supervised fine-tuning."""
        return self.path / "sft"

    @property
    def merge(self) -> Path:
        """Folder of the merged model."""
        return self.path / "merge"

    def eval(self, model: str) -> Path:
        """Scores of one model: `teacher`, a stage name, `sft` or `merge`."""
        return self.path / "eval" / f"{model}.json"

    @property
    def bench(self) -> Path:
        """Speed and memory of the models."""
        return self.path / "bench" / "bench.json"

    @property
    def quantize(self) -> Path:
        """Folder of the quantised files."""
        return self.path / "quantize"

    @property
    def report(self) -> Path:
        """Folder of the report."""
        return self.path / "report"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `result.json` of a finished node says."""

    node: str
    """Name of the node: `h8`, `sft`, `eval/h8`."""
    settings: dict[str, Any]
    """The settings the node ran with, as plain values."""
    settings_hash: str
    """Hash of `settings`."""
    inputs: dict[str, str]
    """Hash of each input, by name."""
    values: dict[str, Any]
    """What the node found or made, as plain values."""
    seconds: float
    """Time the node took."""


def give_usual_permissions(path: Path) -> None:
    """Let others read a file as far as umask does; temporary files begin as their owner's alone."""
    masked = os.umask(0)
    os.umask(masked)
    path.chmod(0o666 & ~masked)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` whole or not at all; the folder is made where it is missing.

    Raises:
        MachineError: the disk is full or refuses; what stood at `path` before still stands.
    """
    path = Path(path)
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        give_usual_permissions(Path(temporary))
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise MachineError(
            f"{path} could not be written ({error.strerror}). Make room or choose another --out."
        ) from error


def write_json(path: Path | str, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all. NaN and infinity are refused."""
    write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        RunError: no such file, or it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist. Has the run come so far?") from error
    except ValueError as error:
        raise RunError(f"{path} is not JSON ({error}). Remove it to make it again.") from error


def read_jsonl(path: Path | str) -> Iterator[dict[str, Any]]:
    """Read the whole lines of a JSONL file; a last line without its end is left out.

    A missing file has no lines. A line that is not JSON raises RunError with its number.
    """
    path = Path(path)
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise RunError(f"{path}, line {number} is not JSON ({error}).") from error


def cut_half_line(path: Path | str) -> None:
    """Remove a last line without its end, which a killed run leaves behind."""
    path = Path(path)
    if not path.exists():
        return
    whole = path.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        os.truncate(path, end)


def hash_json(value: Any) -> str:
    """Hash a plain value; the order of keys does not matter."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path | str) -> str:
    """Hash the bytes of a file.

    Raises:
        RunError: no such file.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist, but a later stage needs it.") from error


def plain(value: Any) -> Any:
    """Turn dataclasses, mappings, tuples and paths into what JSON gives back when read."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    match value:
        case Mapping():
            return {str(key): plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [plain(entry) for entry in value]
        case Path():
            return str(value)
        case _:
            return value


def write_result(
    folder: Path | str,
    node: str,
    *,
    settings: Any,
    inputs: Mapping[str, str],
    values: Any,
    seconds: float,
) -> Result:
    """Write `result.json` into `folder`: the last act of a node, and what makes it done.

    `settings` and `values` are mappings or dataclasses.
    """
    result = Result(
        node=node,
        settings=plain(settings),
        settings_hash=hash_json(settings),
        inputs=dict(inputs),
        values=plain(values),
        seconds=seconds,
    )
    write_json(Path(folder) / RESULT, result)
    return result


def read_result(folder: Path | str) -> Result | None:
    """Read `result.json` of `folder`; None where the node is not done.

    Raises:
        RunError: the file is there and says something else.
    """
    path = Path(folder) / RESULT
    if not path.exists():
        return None
    try:
        return Result(**read_json(path))
    except TypeError as error:
        raise RunError(f"{path} is damaged ({error}). Remove it to run the node again.") from error


def changed_keys(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    """List (dotted key, old value, new value) where two nested settings differ; None = absent."""
    changes: list[tuple[str, Any, Any]] = []
    for key in {**old, **new}:
        before, after = plain(old.get(key)), plain(new.get(key))
        if isinstance(before, dict) and isinstance(after, dict):
            changes += changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append((f"{prefix}{key}", before, after))
    return changes
