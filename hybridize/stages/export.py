"""Export: write a model in the layout another project reads, exactly and verified, or not at all."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from hybridize.core.catalog import did_you_mean
from hybridize.core.errors import ModelError
from hybridize.core.exports import best_format, check_fit
from hybridize.core.whole_folder import whole_folder
from hybridize.exports.folder import write_companions
from hybridize.models.model import Model

FORMATS = {
    "stock": "hybridize.exports.stock:write",
    "hybridize": "hybridize.exports.own:write",
    "apriel-h1": "hybridize.exports.apriel_h1:write",
}
"""Name -> "module:function" that writes a model into a folder; imported on use. See
`hybridize.exports` for what it is given and what it leaves to this stage."""

Write = Callable[[Model, Path, str | None], None]


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What to write."""

    format: str | None = None
    """Name in FORMATS; None is the best that fits: stock, or else hybridize."""
    dtype: str | None = None
    """Type of the weights; None keeps the model's."""


def run(model: Model, settings: ExportSettings, out: Path | str) -> Path:
    """Write `model` into the folder `out`, which appears whole or not at all.

    Raises:
        ModelError: an unknown format, or one that cannot hold the model exactly.
        MachineError: the disk is full or refuses.
    """
    network = model.network
    config = network.config.to_dict()
    name = best_format(config) if settings.format is None else settings.format
    write = find_writer(name)
    reasons = check_fit(config, name)
    if reasons:
        raise ModelError(f"model {model.name} does not fit --format {name}: {'; '.join(reasons)}.")
    tensors = network.state_dict().values()
    needed_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    with whole_folder(out, needed_bytes=needed_bytes) as fresh:
        write(model, fresh, settings.dtype)
        write_companions(model, fresh, {})
    return Path(out)


def find_writer(name: str) -> Write:
    """Return the writer of a format.

    Raises:
        ModelError: there is no such format.
    """
    if name not in FORMATS:
        near = did_you_mean(name, list(FORMATS))
        raise ModelError(f"{name!r} is not an export format. {near}Known: {', '.join(FORMATS)}.")
    module, function = FORMATS[name].split(":")
    write: Write = getattr(import_module(module), function)
    return write
