"""Find the config.json of a teacher, local or on the hub, and read the shape it tells."""

from pathlib import Path

from hybridize.core.artifacts import read_json
from hybridize.core.errors import ModelError
from hybridize.core.shape import SHIPPED_TEACHER, ModelShape


def read_shape(model: str, revision: str | None = None) -> ModelShape:
    """Read the shape of a folder, of `shipped`, or of a hub id (config.json is fetched).

    Raises:
        ModelError: no such model, or of an unknown family.
    """
    folder = find_config(model, revision)
    if model == "shipped" or Path(model) == folder:
        return ModelShape.read(model)
    return ModelShape.from_config(read_json(folder / "config.json"), name=model)


def find_config(model: str, revision: str | None = None) -> Path:
    """Return the folder of a teacher's config.json, which is fetched for a hub id.

    Raises:
        ModelError: it is no folder, and not to be had from the hub.
    """
    if model == "shipped":
        return SHIPPED_TEACHER
    is_hub_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if Path(model).exists() or not is_hub_id:
        return Path(model)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "config.json", revision=revision)).parent
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {model}: no such folder, and not to be had from the hub "
            f"({type(error).__name__}). Check teacher.model and teacher.revision."
        ) from error
