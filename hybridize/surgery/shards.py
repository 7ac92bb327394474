"""Single tensors in and out of safetensors files, with plain reads and writes: nothing is mapped.

A safetensors file is the length of a header (8 bytes, little endian), the header (JSON: name ->
dtype, shape, begin and end), and the values. A mapped file would count as memory of the process
page by page, so tensors are read where they lie and written where they belong, one at a time.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from hybridize.core.apriel_h1 import Rows
from hybridize.core.errors import ModelError
from hybridize.models.folders import Contents
from hybridize.models.loading import DTYPES
from hybridize.surgery.nodes import Shape

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_BLOCK = 2**20
"""Bytes that are copied at once from file to file, few enough to stay in the processor's cache."""


@dataclass(frozen=True)
class Place:
    """Where the values of one tensor are stored."""

    file: Path
    dtype: torch.dtype
    shape: Shape
    start: int
    """Byte of the file at which they begin."""

    @property
    def num_bytes(self) -> int:
        """Bytes the values take."""
        return prod(self.shape) * self.dtype.itemsize


def list_places(contents: Contents, rows: Mapping[str, Rows]) -> dict[str, Place]:
    """Map tensors of a model, each some rows of a tensor in its files, to where they are stored."""
    places = {}
    for name, part in rows.items():
        whole = contents.tensors[part.name]
        width = (whole.stop - whole.start) // max(1, whole.shape[0]) if whole.shape else 0
        shape = (part.stop - part.start, *whole.shape[1:]) if whole.shape else ()
        start = whole.start + part.start * width
        places[name] = Place(whole.file, DTYPES[whole.dtype], shape, start)
    return places


def read_tensor(name: str, place: Place) -> Tensor:
    """Read the values of one tensor into memory of its own.

    Raises:
        ModelError: they are not finite, or the file has become shorter since its header was read.
    """
    tensor = torch.empty(place.shape, dtype=place.dtype)
    if tensor.numel():
        with place.file.open("rb", buffering=0) as file:
            file.seek(place.start)
            _fill(file, _bytes_of(tensor), place.file)
    check_finite(tensor, name, place)
    return tensor


def check_finite(values: Tensor, name: str, place: Place) -> None:
    """Refuse weights that are not finite, as loading a model does.

    Raises:
        ModelError: some are not.
    """
    # One value that is not finite makes their sum so; the other way round is looked at closely.
    if not bool(torch.isfinite(values.sum())) and not bool(torch.isfinite(values).all()):
        raise ModelError(
            f"model {place.file.parent}: {name} holds values that are not finite. "
            "Take an earlier checkpoint of the training that made it."
        )


class ShardWriter:
    """One safetensors file, whose tensors are written in any order; use it in a `with` block."""

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, Shape]]) -> None:
        """Write the header.

        Args:
            path: the file to make.
            tensors: dtype and shape of each tensor that is going to be written.
        """
        order = sorted(tensors, key=lambda name: (-_RANKS[tensors[name][0]], name))
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in order:
            dtype, shape = tensors[name]
            begin, end = end, end + prod(shape) * dtype.itemsize
            stored = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
            entries[name] = stored
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._starts = {name: 8 + len(text) + entries[name]["data_offsets"][0] for name in tensors}
        self._file = path.open("wb", buffering=0)
        _write(self._file, len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the values of one tensor, of the dtype and shape that were announced."""
        self._file.seek(self._starts[name])
        _write(self._file, _bytes_of(tensor.contiguous()))

    def copy(self, name: str, place: Place) -> None:
        """Copy the values of a stored tensor as they are.

        Raises:
            ModelError: they are not finite, or the file has become shorter.
        """
        width = place.dtype.itemsize
        values = torch.empty(min(_BLOCK, place.num_bytes) // width, dtype=place.dtype)
        self._file.seek(self._starts[name])
        with place.file.open("rb", buffering=0) as source:
            source.seek(place.start)
            for begin in range(0, place.num_bytes, _BLOCK):
                part = values[: min(_BLOCK, place.num_bytes - begin) // width]
                _fill(source, _bytes_of(part), place.file)
                check_finite(part, name, place)
                _write(self._file, _bytes_of(part))

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


_RANKS = {torch.float16: 1, torch.bfloat16: 2, torch.float32: 3, torch.float64: 4}
"""Place of a dtype in a file: the widest come first, so that values are aligned."""


def _bytes_of(tensor: Tensor) -> memoryview:
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _fill(file: Any, block: memoryview, path: Path) -> None:
    """Read until a block is full; one read gives 2 GiB at most."""
    while block:
        count = file.readinto(block)
        if not count:
            raise ModelError(f"model {path.parent}: {path.name} is truncated. Copy it again.")
        block = block[count:]


def _write(file: BinaryIO | Any, block: bytes | memoryview) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[file.write(rest) :]
