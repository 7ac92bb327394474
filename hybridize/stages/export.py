"""Export: write a model in the layout of another project, exactly or not at all."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from hybridize.core.catalog import did_you_mean
from hybridize.core.errors import ModelError
from hybridize.core.whole_folder import whole_folder
from hybridize.models.model import Model

FORMATS = {
    "apriel-h1": "hybridize.models.to_apriel_h1:write_apriel_h1",
}
"""Name -> "module:function" that writes a model, tokenizer included, into a folder; imported on
use. It refuses with a ModelError what it cannot hold exactly."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What to write."""

    format: str
    """Name in FORMATS."""


def run(model: Model, settings: ExportSettings, out: Path | str) -> Path:
    """Write `model` into the folder `out`, which appears whole or not at all.

    Raises:
        ModelError: an unknown format, or one that cannot hold the model exactly.
        MachineError: the disk is full or refuses.
    """
    if settings.format not in FORMATS:
        near = did_you_mean(settings.format, list(FORMATS))
        raise ModelError(
            f"{settings.format!r} is not an export format. {near}Known: {', '.join(FORMATS)}."
        )
    module, name = FORMATS[settings.format].split(":")
    write: Callable[[Model, Path], None] = getattr(import_module(module), name)
    tensors = model.network.state_dict().values()
    needed_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    with whole_folder(out, needed_bytes=needed_bytes) as fresh:
        write(model, fresh)
    return Path(out)
