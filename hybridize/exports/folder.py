"""What writers of exports share: tensors in the type asked for, and the files beside them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridize.core.artifacts import write_json
from hybridize.core.errors import ModelError
from hybridize.core.padding import Heads, plan_heads
from hybridize.core.shape import ModelShape
from hybridize.models.folders import write_tensors
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.mixers import Mixer
from hybridize.models.model import Model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Name of `--dtype` -> type of the weights in a file."""


def find_dtype(network: HybridForCausalLM, dtype: str | None) -> torch.dtype:
    """Return the type weights are written in; None is the one the model has.

    Raises:
        ModelError: a type that tensors of transformers do not come in.
    """
    if dtype is None:
        return network.model.embed_tokens.weight.dtype
    if dtype not in DTYPES:
        raise ModelError(
            f"weights cannot be written as {dtype!r} in this format: use {', '.join(DTYPES)}."
        )
    return DTYPES[dtype]


def cast_tensors(network: HybridForCausalLM, dtype: str | None) -> dict[str, Tensor]:
    """Return the tensors by our names, without a tied head, in the type asked for.

    None keeps the type of each; decay and step size are float32 in a model of any type.

    Raises:
        ModelError: see `find_dtype`, or a weight is too large for the type.
    """
    tensors = dict(network.state_dict())
    if network.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    if dtype is None:
        return tensors
    goal, small = find_dtype(network, dtype), float32_names(network)
    return {
        name: tensor.float() if name in small else _cast(name, tensor, goal)
        for name, tensor in tensors.items()
    }


def write_model(
    tensors: Mapping[str, Tensor], values: dict[str, Any], folder: Path, *, dtype: torch.dtype
) -> None:
    """Write the tensors of a class by its names, and its config.json with their type."""
    write_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, folder)
    written = values | {"dtype": str(dtype).removeprefix("torch.")}
    write_json(folder / "config.json", written)


def write_padded(
    model: Model,
    folder: Path,
    dtype: str | None,
    *,
    rename: Callable[[dict[str, Tensor], HybridForCausalLM, ModelShape, Heads], dict[str, Tensor]],
    make_config: Callable[[HybridForCausalLM, ModelShape, Heads], dict[str, Any]],
) -> None:
    """Write a student in a class that may want zero heads beside its own."""
    network = model.network
    shape = ModelShape.from_config(network.config.to_dict())
    heads = plan_heads(shape)
    assert heads is not None, "check_fit lets no such shape pass"
    tensors = rename(cast_tensors(network, dtype), network, shape, heads)
    values = make_config(network, shape, heads)
    write_model(tensors, values, folder, dtype=find_dtype(network, dtype))


def _cast(name: str, tensor: Tensor, goal: torch.dtype) -> Tensor:
    made = tensor.to(goal)
    if goal == torch.float16 and not bool(torch.isfinite(made.sum(dtype=torch.float32))):
        raise ModelError(f"{name} has values that float16 cannot hold. Use --dtype bfloat16.")
    return made


def float32_names(network: HybridForCausalLM) -> set[str]:
    """Name the tensors that are float32 in a model of any type."""
    return {
        f"{prefix}.{name}"
        for prefix, module in network.named_modules()
        if isinstance(module, Mixer)
        for name in module.FLOAT32
    }


def write_companions(model: Model, folder: Path, texts: Mapping[str, str]) -> None:
    """Write generation settings, tokenizer with chat template, and texts by file name."""
    model.network.generation_config.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
