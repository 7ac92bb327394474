"""A model folder made ready for a serving engine that does not read it as it is."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from hybridize.core.whole_folder import whole_folder
from hybridize.exports.folder import write_companions
from hybridize.models.model import Model, load

WRITERS = {
    "gguf": "hybridize.exports.gguf:write",
    "gguf-unpadded": "hybridize.exports.gguf:write_unpadded",
    "stock": "hybridize.exports.stock:write",
}
"""Format -> "module:function" of its writer, for what engines are given."""


def make_ready(model: Path | str, folder: Path, *, format: str, dtype: str | None = None) -> Path:
    """Write a model in a format into `folder`; return it. Nothing is verified; see `export`.

    Args:
        model: folder, hub id or "shipped".
        folder: appears whole or not at all.
        format: name in WRITERS.
        dtype: of the weights, as the writer has it; None keeps the model's.

    Raises:
        ModelError: the format cannot hold the model exactly.
        MachineError: the disk is full or refuses, or a package is not installed.
    """
    module, name = WRITERS[format].split(":")
    write: Callable[[Model, Path, str | None], None] = getattr(import_module(module), name)
    loaded = load(model, dtype=None)
    with whole_folder(folder) as fresh:
        write(loaded, fresh, dtype)
        write_companions(loaded, fresh, {})
    return folder
