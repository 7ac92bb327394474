"""Model folders: find one, know what it holds before any of it is loaded, and write one whole."""

import importlib.util
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hybridize.core.apriel_h1 import Rows, is_apriel_h1
from hybridize.core.artifacts import give_usual_permissions
from hybridize.core.errors import ModelError
from hybridize.core.limits import check_counts, check_sizes
from hybridize.core.model_files import INDEX, WEIGHTS, TensorPlace, list_tensors, read_config, tell
from hybridize.core.shape import SHIPPED_TEACHER
from hybridize.core.whole_folder import whole_folder
from hybridize.models.apriel_h1 import make_config, read_apriel_h1
from hybridize.models.families import find_family
from hybridize.models.hybrid import HybridConfig, HybridForCausalLM

_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "*.txt"]
_SHARD_SIZE = "5GB"
_NEVER_READ = ("attn_implementation", "experts_implementation", "auto_map")
"""Keys of a config.json that could name code to fetch and run."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a model folder holds, before a tensor is read."""

    folder: Path
    config: HybridConfig
    tensors: Mapping[str, TensorPlace]
    """The tensors of its files; empty where only config.json was asked for."""
    rows: Mapping[str, Rows] = field(default_factory=dict)
    """Tensors of the model that are but rows of one in the files."""
    left_out: tuple[int, ...] = ()
    """Layers without tensors, which the residual stream passes by."""


def find_folder(path: str | Path, revision: str | None = None) -> Path:
    """Return the local folder of a model, fetching a hub id if need be.

    Raises:
        ModelError: it is no folder, and no hub id that can be fetched.
    """
    if str(path) == "shipped":
        path = SHIPPED_TEACHER
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(path).startswith(".") or str(path).count("/") != 1:
        raise ModelError(f"model {path}: there is no such folder. Check the path.")
    try:
        return Path(snapshot_download(str(path), revision=revision, allow_patterns=_FILES))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"model {path}: no such folder, and it cannot be fetched from the hub ({reason}). "
            "Check the name and the revision, or give a local folder."
        ) from error


def read_contents(folder: Path, *, with_tensors: bool = True) -> Contents:
    """Read config.json and the headers of the tensor files, and hold them against each other.

    Args:
        folder: of a teacher, a student, or a published Apriel-H1 checkpoint.
        with_tensors: False looks at the tensor files of Apriel-H1 only, where there are any.

    Raises:
        ModelError: a file is missing or broken, the family is not known, or sizes disagree.
    """
    values = read_config(folder)
    published = is_apriel_h1(values)
    wanted = with_tensors or (published and any((folder / f).exists() for f in (WEIGHTS, INDEX)))
    tensors = list_tensors(folder) if wanted else {}
    shapes = {name: place.shape for name, place in tensors.items()}
    if values.get("quantization_config"):
        raise ModelError(
            f"model {folder}: its weights are quantised (quantization_config in config.json). "
            "Give the folder of the weights in float32, bfloat16 or float16."
        )
    values = _clean(values)
    if published or is_apriel_h1(values, tensors):
        translation = read_apriel_h1(values, shapes or None, str(folder))
        try:
            config = make_config(translation, values, tensors)
        except Exception as error:
            raise _not_a_model(folder, error) from error
        return Contents(
            folder=folder,
            config=config,
            tensors=tensors,
            rows=translation.rows,
            left_out=translation.left_out,
        )
    return Contents(folder=folder, config=_read_config(values, shapes, folder), tensors=tensors)


def _clean(values: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what could make transformers fetch or run code, also from the teacher's values."""
    kept = {
        name: value
        for name, value in values.items()
        if not name.startswith("_") and name not in _NEVER_READ
    }
    if isinstance(kept.get("teacher"), Mapping):
        kept["teacher"] = _clean(kept["teacher"])
    return kept


def _read_config(
    values: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> HybridConfig:
    is_student = values.get("model_type") == HybridConfig.model_type
    teacher = values.get("teacher") if is_student else values
    if not isinstance(teacher, dict):
        raise ModelError(f"model {folder}: config.json has no teacher. Copy it again.")
    name = teacher.get("model_type")
    if not isinstance(name, str) or len(name) > 80 or not name.isprintable():
        raise ModelError(f"model {folder}: model_type in config.json is {tell(name)}, no name.")
    family = find_family(name, str(folder))
    check_sizes(teacher, str(folder))
    check_counts(teacher, shapes, str(folder))
    if is_student:
        _check_mixers(values, folder)
    try:
        if is_student:
            return HybridConfig(**values)
        return HybridConfig(teacher=family.config(**values))
    except Exception as error:
        raise _not_a_model(folder, error) from error


def _check_mixers(values: Mapping[str, Any], folder: Path) -> None:
    mixers, options = values.get("mixers"), values.get("mixer_options") or {}
    num_layers = values["teacher"].get("num_hidden_layers")
    named = isinstance(mixers, list) and all(
        isinstance(kind, str) and kind.isprintable() and len(kind) < 200 for kind in mixers
    )
    if mixers is not None and not (named and len(mixers) == num_layers):
        raise ModelError(
            f"model {folder}: mixers in config.json is no list of {num_layers} kinds, one for "
            "each layer. Copy the config.json that belongs to the weights."
        )
    if not isinstance(options, dict) or not all(isinstance(v, dict) for v in options.values()):
        raise ModelError(f"model {folder}: mixer_options in config.json is no mapping of mappings.")
    for kind in sorted({kind for kind in mixers or () if ":" in kind}):
        _check_plugin(kind, folder)


def _check_plugin(kind: str, folder: Path) -> None:
    """Refuse a mixer whose code would come from the model folder, or from around it."""
    package, home = kind.split(":")[0].split(".")[0], folder.resolve()
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    for place in (Path(place).resolve() for place in places if place):
        if place.is_relative_to(home) or home.is_relative_to(place):
            raise ModelError(
                f"model {folder}: mixer {tell(kind)} would run code out of the model folder. "
                "Install the package of the mixer if you trust it."
            )


def build_outline(contents: Contents) -> HybridForCausalLM:
    """Return the model on the meta device: names and shapes, no values.

    Raises:
        ModelError: config.json asks for something that no model can be.
    """
    try:
        with torch.device("meta"):
            return HybridForCausalLM(contents.config)
    except ModelError:
        raise
    except Exception as error:
        raise _not_a_model(contents.folder, error) from error


def _not_a_model(folder: Path, error: Exception) -> ModelError:
    if isinstance(error, ModelError):
        return error
    reason = tell((str(error).splitlines() or [""])[0])
    return ModelError(
        f"model {folder}: config.json describes no model ({type(error).__name__}: {reason}). "
        "Copy it again."
    )


def save_model(
    model: HybridForCausalLM, tokenizer: PreTrainedTokenizerBase | None, folder: str | Path
) -> Path:
    """Write a folder for `load_model` and AutoModelForCausalLM; a reader never sees half of it.

    Raises:
        MachineError: the disk is full or refuses; what stood in `folder` still stands.
    """
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    with whole_folder(folder, needed_bytes=count_bytes(tensors.values())) as fresh:
        write_tensors(tensors, fresh)
        model.generation_config.save_pretrained(fresh)
        if tokenizer is not None:
            tokenizer.save_pretrained(fresh)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(fresh)
    return Path(folder)


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Count the bytes tensors take in a file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def write_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors as one safetensors file, or as shards with an index where they are large.

    Raises:
        OSError: the disk is full or refuses.
    """
    split = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=_SHARD_SIZE)
    for file, names in split.filename_to_tensors.items():
        shard = {name: tensors[name] for name in names}
        try:
            save_file(shard, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        give_usual_permissions(folder / file)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2))
