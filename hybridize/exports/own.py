"""The own class: the folder that `import hybridize` and AutoModelForCausalLM read."""

from copy import deepcopy
from pathlib import Path

from hybridize.exports.folder import cast_tensors, find_dtype
from hybridize.models.folders import write_tensors
from hybridize.models.model import Model


def write(model: Model, folder: Path, dtype: str | None) -> None:
    """Write weights and config.json of any model of ours; raises like `cast_tensors`."""
    network = model.network
    write_tensors({n: t.contiguous() for n, t in cast_tensors(network, dtype).items()}, folder)
    config = deepcopy(network.config)
    config.architectures = [type(network).__name__]
    config.dtype = find_dtype(network, dtype)
    config.save_pretrained(folder)
