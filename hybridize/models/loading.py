"""Load a teacher or a student from a folder, and save one: safetensors only, no code, no pickle."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from hybridize.core.errors import ModelError
from hybridize.core.shape import SHIPPED_TEACHER
from hybridize.models.apriel_h1 import is_apriel_h1, read_apriel_h1
from hybridize.models.families import find_family
from hybridize.models.hybrid import HybridConfig, HybridForCausalLM
from hybridize.models.mixers import Mixer

_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "*.txt"]


def load_model(
    path: str | Path, *, dtype: torch.dtype | None = None, revision: str | None = None
) -> HybridForCausalLM:
    """Load a teacher of a known family as an all-attention student, or a saved student as it is.

    Args:
        path: a folder, a hub id, or "shipped".
        dtype: None keeps the dtype the tensors are saved in; small decay parameters stay float32.
        revision: commit or tag of a hub id.

    Raises:
        ModelError: a file is missing or broken, a tensor is missing or has the wrong shape, the
            family is not known, or the weights are not in safetensors.
    """
    folder = find_folder(path, revision)
    config = _read_config(folder)
    with torch.device("meta"):
        model = HybridForCausalLM(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    tensors = _read_tensors(folder, wanted, dtype, _float32_names(model))
    model.load_state_dict(tensors, strict=False, assign=True)
    # Inverse frequencies are computed, not saved, so they are still on the meta device.
    model.model.rotary_emb = find_family(config.teacher.model_type).rotary(config=config.teacher)
    model.tie_weights()
    model.config.dtype = model.model.embed_tokens.weight.dtype
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def load_outline(folder: str | Path) -> HybridForCausalLM:
    """Return the model of a folder on the meta device: names and shapes; only config.json is read.

    Raises:
        ModelError: there is no config.json, or it is of no known family.
    """
    with torch.device("meta"):
        return HybridForCausalLM(_read_config(Path(folder)))


def load_tokenizer(path: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder, a hub id or "shipped".

    Raises:
        ModelError: there is no tokenizer, or it has more tokens than the model has embeddings.
    """
    folder = find_folder(path, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model {folder}: the tokenizer cannot be read ({error}). "
            "Copy the teacher's tokenizer files there."
        ) from error
    vocab_size = _read_config(folder).vocab_size
    if len(tokenizer) > vocab_size:
        raise ModelError(
            f"model {folder}: the tokenizer has {len(tokenizer)} tokens, but the embedding has "
            f"{vocab_size} rows. Use the tokenizer that belongs to the model."
        )
    return tokenizer


def save_model(
    model: HybridForCausalLM, tokenizer: PreTrainedTokenizerBase | None, folder: str | Path
) -> Path:
    """Write a folder for `load_model` and AutoModelForCausalLM; a reader never sees half of it."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, stale = (folder.with_name(f".{folder.name}.{word}") for word in ("writing", "replaced"))
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir()
    _write_tensors(model, fresh)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(fresh)
    model.generation_config.save_pretrained(fresh)
    if tokenizer is not None:
        tokenizer.save_pretrained(fresh)
    if folder.exists():
        folder.rename(stale)
    fresh.rename(folder)
    shutil.rmtree(stale, ignore_errors=True)
    return folder


def _write_tensors(model: HybridForCausalLM, folder: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    split = split_torch_state_dict_into_shards(tensors, max_shard_size="5GB")
    for file, names in split.filename_to_tensors.items():
        shard = {name: tensors[name] for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


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


def _read_config(folder: Path) -> HybridConfig:
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(
            f"model {folder}: config.json is missing. Give the folder of a model."
        ) from None
    except ValueError as error:
        raise ModelError(f"model {folder}: config.json is not JSON ({error}).") from error
    family = values.get("model_type")
    if family == HybridConfig.model_type:
        return HybridConfig(**values)
    if is_apriel_h1(values):
        return read_apriel_h1(values, str(folder))
    return HybridConfig(teacher=find_family(str(family), str(folder)).config(**values))


def _float32_names(model: HybridForCausalLM) -> set[str]:
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, Mixer)
        for name in module.FLOAT32
    }


def _read_tensors(
    folder: Path,
    wanted: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype | None,
    float32_names: set[str],
) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for shard in list_shards(folder):
        try:
            with safe_open(shard, framework="pt") as file:
                for name in wanted.keys() & set(file.keys()):
                    shape = tuple(file.get_slice(name).get_shape())
                    if shape != wanted[name]:
                        raise ModelError(
                            f"model {folder}: {name} in {shard.name} has shape {shape}, but "
                            f"config.json asks for {wanted[name]}. The weights and config.json "
                            "belong to different models."
                        )
                    tensor = file.get_tensor(name)
                    goal = torch.float32 if name in float32_names else dtype
                    tensors[name] = tensor if goal is None else tensor.to(goal)
        except SafetensorError as error:
            raise ModelError(
                f"model {folder}: {shard.name} is truncated or not a safetensors file ({error}). "
                "Copy it again."
            ) from error
    missing = sorted(wanted.keys() - tensors.keys())
    if missing:
        raise ModelError(
            f"model {folder}: {len(missing)} tensors are missing, the first is {missing[0]}. "
            "Copy all shards, or check config.json."
        )
    return tensors


def list_shards(folder: Path) -> list[Path]:
    """List the safetensors files of a folder, those its index names if it has one.

    Raises:
        ModelError: one is missing.
    """
    index = folder / "model.safetensors.index.json"
    shards = [folder / "model.safetensors"]
    if index.is_file():
        names: dict[str, Any] = json.loads(index.read_text())["weight_map"]
        shards = [folder / name for name in sorted(set(names.values()))]
    for shard in shards:
        if not shard.is_file():
            pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))
            hint = "Copy it there."
            if pickled:
                hint = f"{pickled[0].name} is a pickle, never loaded: convert it to safetensors."
            raise ModelError(f"model {folder}: {shard.name} is missing. {hint}")
    return shards
