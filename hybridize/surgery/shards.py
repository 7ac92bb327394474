"""Single tensors in and out of safetensors files, with plain reads and writes: nothing is mapped.

A safetensors file is the length of a header (8 bytes, little endian), the header (JSON: name ->
dtype, shape, begin and end), and the values. A mapped file would count as memory of the process
page by page, so tensors are read where they lie and written where they belong, one at a time.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from hybridize.core.errors import ModelError
from hybridize.surgery.nodes import Shape

DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F64": torch.float64,
}
"""Name in a header -> dtype, of what weights may be stored in."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000
_BLOCK = 2**24
"""Bytes that are copied at once from file to file."""


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


def find_tensors(shards: Iterable[Path]) -> dict[str, Place]:
    """Read the headers of some files: tensor -> its place; of tensors of other dtypes, none.

    Raises:
        ModelError: a file is truncated, or its header is not that of a safetensors file.
    """
    places: dict[str, Place] = {}
    for shard in shards:
        try:
            places |= _read_header(shard)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"model {shard.parent}: {shard.name} is truncated or not a safetensors file "
                f"({error}). Copy it again."
            ) from error
    return places


def _read_header(shard: Path) -> dict[str, Place]:
    size = shard.stat().st_size
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(_LONGEST_HEADER, size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = json.loads(file.read(length))
    places = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in DTYPES:
            continue
        begin, end = entry["data_offsets"]
        start, shape = 8 + length + begin, tuple(entry["shape"])
        place = Place(shard, DTYPES[entry["dtype"]], shape, start)
        if min(begin, *shape, 0) < 0 or end - begin != place.num_bytes or start < 8 + length:
            raise ValueError(f"{name} of shape {shape} does not fit bytes {begin} to {end}")
        if start + place.num_bytes > size:
            raise ValueError(f"{name} ends at byte {start + place.num_bytes} of {size}")
        places[name] = place
    return places


def read_tensor(place: Place) -> Tensor:
    """Read the values of one tensor into memory of its own.

    Raises:
        ModelError: the file has become shorter since its header was read.
    """
    tensor = torch.empty(place.shape, dtype=place.dtype)
    if tensor.numel():
        with place.file.open("rb", buffering=0) as file:
            file.seek(place.start)
            _fill(file, _bytes_of(tensor), place.file)
    return tensor


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
        """Copy the values of a stored tensor as they are."""
        block = memoryview(bytearray(min(_BLOCK, place.num_bytes)))
        self._file.seek(self._starts[name])
        with place.file.open("rb", buffering=0) as source:
            source.seek(place.start)
            for begin in range(0, place.num_bytes, _BLOCK):
                part = block[: min(_BLOCK, place.num_bytes - begin)]
                _fill(source, part, place.file)
                _write(self._file, part)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


_RANKS = {torch.float16: 1, torch.bfloat16: 2, torch.float32: 3, torch.float64: 4}
"""Place of a dtype in a file: the widest come first, so that values are aligned."""


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())


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
