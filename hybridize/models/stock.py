"""Load a folder with the class of transformers that its config.json names: no code, no pickle."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hybridize.core.artifacts import read_json
from hybridize.core.errors import ModelError, RunError
from hybridize.models.families import FAMILIES
from hybridize.models.folders import find_folder
from hybridize.models.hybrid import HybridConfig


def is_stock(folder: Path | str) -> bool:
    """Tell whether transformers has a class for the folder's model type, and this package none."""
    try:
        kind = read_json(Path(folder) / "config.json").get("model_type")
    except (RunError, AttributeError):
        return False
    ours = kind in FAMILIES or kind == HybridConfig.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not ours


def load_stock(model: Path | str, *, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return the model and the tokenizer of a folder, as transformers alone would load them.

    Raises:
        ModelError: transformers cannot load it so, or it has no tokenizer.
    """
    folder = find_folder(model)
    try:
        network = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"model {model}: transformers cannot load it with a class of its own ({reason}). "
            "Check config.json, or export it again."
        ) from error
    return network.eval(), tokenizer
