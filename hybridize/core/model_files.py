"""What a model folder holds, read without trusting it: JSON files, the index, tensor headers.

    tensors = list_tensors(folder)          # name -> file, dtype, shape, first byte and last

Nothing here allocates by what a file claims before the claim is held against the size of the file,
and no file outside the folder is opened. A header is that of safetensors: 8 bytes of length, little
endian, then JSON, then the bytes of the tensors one after the other without gaps.
"""

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridize.core.errors import ModelError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""
DTYPE_BYTES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2},
    **{"BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8},
}


_LONGEST_NAME, _LONGEST_TOLD = 500, 60
_FILE_NAME = re.compile(r"[\w .+=@-]{1,200}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """Where one tensor lies."""

    file: Path
    dtype: str
    """As the header writes it: F32, BF16, ..."""
    shape: tuple[int, ...]
    start: int
    """First byte of the tensor in the file."""
    stop: int
    """The byte after its last."""


def read_json_object(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        ModelError: no such file, too large, not JSON, or JSON of something else than an object.
        FileNotFoundError: there is no such file.
    """
    place = f"model {path.parent}: {path.name}"
    size = _file_size(path, place)
    if size > max_bytes:
        raise ModelError(f"{place} has {size} bytes, more than a description of a model needs.")
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{place} is not JSON ({error}). Copy it again.") from error
    except OSError as error:
        raise ModelError(f"{place} cannot be read ({error.strerror}).") from error
    if not isinstance(value, dict):
        raise ModelError(f"{place} is not JSON of an object, but a {type(value).__name__}.")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json` of a model folder.

    Raises:
        ModelError: it is missing, or not a JSON object.
    """
    try:
        return read_json_object(folder / CONFIG)
    except FileNotFoundError:
        raise ModelError(
            f"model {folder}: config.json is missing. Give the folder of a model."
        ) from None


def list_tensors(folder: Path) -> dict[str, TensorPlace]:
    """List the tensors of a folder, of one file or of many with an index, from their headers.

    Raises:
        ModelError: a file is missing, truncated, no safetensors or outside the folder, or the files
            hold other tensors than the index says, or one twice.
    """
    index = None if (folder / WEIGHTS).exists() else _read_index(folder)
    files = {WEIGHTS} if index is None else set(index.values())
    tensors: dict[str, TensorPlace] = {}
    for file in sorted(files):
        for name, place in read_header(_inside(folder, file)).items():
            if name in tensors:
                raise ModelError(
                    f"model {folder}: {name} is in {tensors[name].file.name} and in {file}. "
                    "Copy the files of one model only."
                )
            tensors[name] = place
    if index is not None:
        _compare_with_index(folder, index, tensors)
    return tensors


def read_header(path: Path) -> dict[str, TensorPlace]:
    """Read the header of one safetensors file and hold it against the size of the file.

    Raises:
        ModelError: the header is longer than the file, not JSON, or its tensors do not fill the
            file exactly.
    """
    size = _file_size(path, f"model {path.parent}: {path.name}")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise _damaged(path, f"a header of {length} bytes in a file of {size}")
        text = file.read(length)
    try:
        entries = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise _damaged(path, "its header is not JSON") from None
    if not isinstance(entries, dict):
        raise _damaged(path, "its header is not an object")
    entries.pop("__metadata__", None)
    if not all(map(_is_name, entries)):
        raise _damaged(path, "a tensor has an unprintable name")
    places = [_place(path, name, entry, 8 + length) for name, entry in entries.items()]
    end = 8 + length
    for name, place in sorted(places, key=lambda pair: (pair[1].start, pair[1].stop)):
        if place.start != end:
            raise _damaged(path, f"{name} does not begin where the tensor before it ends")
        end = place.stop
    if end != size:
        raise _damaged(path, f"its header tells of {end} bytes, but it has {size}")
    return dict(places)


def _place(path: Path, name: str, entry: Any, offset: int) -> tuple[str, TensorPlace]:
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, span = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _damaged(path, f"{name} has the unknown type {tell(dtype)}")
    if not (_are_counts(shape) and _are_counts(span) and len(span) == 2 and span[0] <= span[1]):
        raise _damaged(path, f"{name} has no shape or no place")
    start, stop = span
    if math.prod(shape) * DTYPE_BYTES[dtype] != stop - start:
        raise _damaged(path, f"{name} of shape {tell(shape)} has {stop - start} bytes")
    return name, TensorPlace(
        file=path, dtype=dtype, shape=tuple(shape), start=offset + start, stop=offset + stop
    )


def tell(value: Any) -> str:
    """Return a value of an untrusted file as it may stand in a message: printable, and not long."""
    text = ascii(value)
    return text if len(text) <= _LONGEST_TOLD else f"{text[:_LONGEST_TOLD]}..."


def _is_name(name: str) -> bool:
    return name.isascii() and name.isprintable() and len(name) <= _LONGEST_NAME


def _are_counts(values: Any) -> bool:
    if not isinstance(values, list):
        return False
    return all(isinstance(value, int) and value is not True and value >= 0 for value in values)


def _read_index(folder: Path) -> dict[str, str]:
    try:
        weight_map = read_json_object(folder / INDEX).get("weight_map")
    except FileNotFoundError:
        raise _missing(folder, WEIGHTS) from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"model {folder}: {INDEX} has no weight_map. Copy it again.")
    for name, file in weight_map.items():
        if not _is_name(name) or not isinstance(file, str) or not file.endswith(".safetensors"):
            raise ModelError(
                f"model {folder}: {INDEX} says that {tell(name)} is in {tell(file)}, which is no "
                "safetensors file. Convert the weights to safetensors."
            )
    return weight_map


def _compare_with_index(
    folder: Path, index: Mapping[str, str], tensors: Mapping[str, TensorPlace]
) -> None:
    for name in sorted(index.keys() | tensors.keys()):
        told = index.get(name)
        found = tensors[name].file.name if name in tensors else None
        if told != found:
            raise ModelError(
                f"model {folder}: {INDEX} says that {name} is in {told or 'no file'}, but it is in "
                f"{found or 'none of the files'}. Copy the files of one model only."
            )


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a file named in a folder, if it is in there.

    A folder of the hub's cache holds links into the `blobs` beside its `snapshots`; no other link
    may lead out.
    """
    path = folder / name
    if _FILE_NAME.fullmatch(name) is None:
        raise ModelError(
            f"model {folder}: {INDEX} names {tell(name)}, which is no file name. "
            "Weights are read from the model's own folder only."
        )
    if not path.exists():
        raise _missing(folder, name)
    home = folder.resolve()
    homes = [home]
    if home.parent.name == "snapshots":
        homes.append(home.parent.parent / "blobs")
    if not any(path.resolve().is_relative_to(place) for place in homes):
        raise ModelError(
            f"model {folder}: {name} is a link out of the folder, to {path.resolve()}. "
            "Copy the file there."
        )
    return path


def _missing(folder: Path, name: str) -> ModelError:
    pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))
    hint = "Copy it there."
    if pickled:
        hint = f"{pickled[0].name} is a pickle, never loaded: convert it to safetensors."
    return ModelError(f"model {folder}: {name} is missing. {hint}")


def _file_size(path: Path, place: str) -> int:
    """Return the size of a plain file; a pipe or a device is never opened."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(f"{place} cannot be read ({error}).") from error
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"{place} is not a file. Copy the file there.")
    return found.st_size


def _damaged(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"model {path.parent}: {path.name} is truncated or not a safetensors file ({reason}). "
        "Copy it again."
    )
