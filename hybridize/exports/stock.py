"""Stock classes: a student re-hosted in the class of transformers that computes the same."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from hybridize.core.errors import ModelError
from hybridize.core.exports import find_target
from hybridize.models.model import Model

WRITERS = {
    "teacher": "hybridize.exports.teacher:write",
    "granite": "hybridize.exports.granite:write",
    "granite_swa": "hybridize.exports.granite_swa:write",
    "qwen3_5": "hybridize.exports.qwen3_5:write",
}
"""Name in `hybridize.core.exports.TARGETS` -> "module:function" that writes it."""


def write(model: Model, folder: Path, dtype: str | None) -> None:
    """Write weights and config.json of the class that holds the model's mixers.

    Raises:
        ModelError: no class does, or the weights do not fit it.
    """
    target = find_target(model.network.config.to_dict())
    if target is None:
        raise ModelError(f"model {model.name}: no class of transformers holds {model.layout}.")
    module, function = WRITERS[target].split(":")
    writer: Callable[[Model, Path, str | None], None] = getattr(import_module(module), function)
    writer(model, folder, dtype)
