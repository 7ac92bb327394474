"""Records of stored text one by one, each with the place that an error about it names."""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from hybridize.core.errors import MachineError, RunError
from hybridize.core.stored_text import StoredText

Record = dict[str, Any]
Placed = tuple[str, Record]
ROWS_AT_ONCE = 256


def read_records(source: StoredText) -> Iterator[Placed]:
    """Yield (place, record) of every record, in the order of the files.

    Raises:
        RunError: no such file or dataset, or a record that cannot be read; with its place.
        MachineError: a package that reads this kind is not installed.
    """
    if source.kind == "datasets":
        yield from _read_dataset(source)
        return
    read = _read_parquet if source.kind == "parquet" else _read_jsonl
    for file in source.files():
        yield from read(file)


def _read_jsonl(path: Path) -> Iterator[Placed]:
    """Read a JSONL file; empty lines are passed over, the last line needs no end."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"data {path}, line {number}"
            try:
                record = json.loads(line.rstrip())
            except UnicodeDecodeError as error:
                raise RunError(f"{place} is not UTF-8 text. Save the file as UTF-8.") from error
            except json.JSONDecodeError as error:
                raise RunError(
                    f"{place} is not JSON ({error.msg} at column {error.colno}). "
                    "Correct or remove the line."
                ) from error
            if not isinstance(record, dict):
                raise RunError(
                    f"{place} is {json.dumps(record)[:40]}, which is no object. "
                    'Write it like {"text": "..."}.'
                )
            yield place, record


def _read_parquet(path: Path) -> Iterator[Placed]:
    parquet = _import("pyarrow.parquet", path)
    arrow = _import("pyarrow", path)
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for rows in file.iter_batches(batch_size=ROWS_AT_ONCE):
                for record in rows.to_pylist():
                    number += 1
                    yield f"data {path}, row {number}", record
    except (arrow.ArrowException, OSError) as error:
        raise RunError(
            f"data {path} cannot be read as parquet after row {number} ({_first_line(error)}). "
            "Check the file, or fetch it again."
        ) from error


def _read_dataset(source: StoredText) -> Iterator[Placed]:
    datasets = _import("datasets", source.name)
    try:
        rows = _load_dataset(datasets, source)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        where = "on the hub" if source.on_hub else "in this folder"
        raise RunError(
            f"data {source.name}: no dataset can be read {where} ({_first_line(error)}). "
            "Check the name, the split and the revision."
        ) from error
    for number, record in enumerate(rows, start=1):
        yield f"data {source.name}, split {source.split}, row {number}", record


def _load_dataset(datasets: Any, source: StoredText) -> Any:
    """Load what `save_to_disk` wrote, a folder of data files, or a hub id; never any code."""
    folder = Path(source.name)
    saved = ("dataset_dict.json", "state.json")
    if any((folder / name).is_file() for name in saved):
        rows = datasets.load_from_disk(str(folder))
        if isinstance(rows, dict):
            if source.split not in rows:
                raise ValueError(f"it has the splits {', '.join(rows)}, not {source.split}")
            return rows[source.split]
        return rows
    return datasets.load_dataset(
        source.name, source.config, split=source.split, revision=source.revision
    )


def _import(module: str, name: Path | str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MachineError(
            f"data {name} needs the package {package}, which is not installed. "
            'Install it: pip install "hybridize[data]".'
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
