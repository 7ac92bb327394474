"""Read the shape of a teacher from its config.json alone, local or on the hub."""

from pathlib import Path

from hybridize.core.artifacts import read_json
from hybridize.core.errors import ModelError
from hybridize.core.shape import ModelShape


def read_shape(model: str, revision: str | None = None) -> ModelShape:
    """Read the shape of a folder, of `shipped`, or of a hub id (config.json is fetched).

    Raises:
        ModelError: no such model, or of an unknown family.
    """
    is_hub_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if Path(model).exists() or not is_hub_id:
        return ModelShape.read(model)
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(model, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {model}: no such folder, and not to be had from the hub "
            f"({type(error).__name__}). Check teacher.model and teacher.revision."
        ) from error
    return ModelShape.from_config(read_json(path), name=model)
