"""The teacher's own class, for a model in which no layer is converted."""

from copy import deepcopy
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hybridize.exports.folder import cast_tensors, find_dtype
from hybridize.models.folders import write_tensors
from hybridize.models.model import Model


def write(model: Model, folder: Path, dtype: str | None) -> None:
    """Write the tensors, which have the teacher's names, and the teacher's config.json."""
    network = model.network
    write_tensors({n: t.contiguous() for n, t in cast_tensors(network, dtype).items()}, folder)
    config = deepcopy(network.config.teacher)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    config.dtype = find_dtype(network, dtype)
    config.save_pretrained(folder)
