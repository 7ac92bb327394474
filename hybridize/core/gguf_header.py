"""What a GGUF file says of itself before its weights: architecture, sizes, tokenizer; no torch.

The format: magic, version, numbers of tensors and of keys, then each key with a type and a value.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from hybridize.core.errors import ModelError

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_SCALARS = {
    **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"},
    **{10: "Q", 11: "q", 12: "d"},
}
_STRING, _ARRAY = 8, 9
_MOST = 2**28
"""Keys, entries or bytes beyond which a number is damage, not a size."""


def read_gguf_header(path: Path | str) -> dict[str, Any]:
    """Return the keys of a GGUF file, arrays as lists.

    Raises:
        ModelError: the file is not there, is no GGUF, or ends too early.
    """
    try:
        with Path(path).open("rb") as file:
            if file.read(4) != _MAGIC:
                raise ModelError(f"{path} is not a GGUF file.")
            return _read_pairs(file)
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}). Check the path.") from error
    except (struct.error, ValueError, KeyError) as error:
        raise ModelError(f"{path} is damaged within its keys. Copy or export it again.") from error


def get_size(header: Mapping[str, Any], name: str) -> int | None:
    """Return a size of the model, such as context_length; None where the file does not say."""
    value = header.get(f"{header.get('general.architecture')}.{name}")
    return None if value is None else int(value)


def _read_pairs(file: BinaryIO) -> dict[str, Any]:
    version, _, num_keys = struct.unpack("<IQQ", file.read(20))
    if version not in _VERSIONS or num_keys > _MOST:
        raise ValueError(version)
    return dict(_read_pair(file) for _ in range(num_keys))


def _read_pair(file: BinaryIO) -> tuple[str, Any]:
    name = _read_string(file)
    (kind,) = struct.unpack("<I", file.read(4))
    return name, _read_value(file, kind)


def _read_value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _read_string(file)
    if kind != _ARRAY:
        return _read_scalars(file, kind, 1)[0]
    inner, count = struct.unpack("<IQ", file.read(12))
    if count > _MOST:
        raise ValueError(count)
    if inner in _SCALARS:
        return _read_scalars(file, inner, count)
    return [_read_value(file, inner) for _ in range(count)]


def _read_scalars(file: BinaryIO, kind: int, count: int) -> list[Any]:
    layout = f"<{count}{_SCALARS[kind]}"
    return list(struct.unpack(layout, file.read(struct.calcsize(layout))))


def _read_string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _MOST:
        raise ValueError(length)
    text = file.read(length)
    if len(text) < length:
        raise ValueError(length)
    return text.decode("utf-8")
