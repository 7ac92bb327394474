"""GGUF: one file with weights, sizes and tokenizer, for llama.cpp and what is built on it.

A student with mamba2 layers becomes llama.cpp's `granitehybrid`, an all-attention model the
architecture of its family, so that teacher and student can be compared in one engine. Released
builds want the inner width of the mixers to be twice the hidden size; a narrower mixer gets heads
of zeros, in groups of zeros, which add exactly nothing but take their share of state and work.
`write_unpadded` leaves them out, for a build in which that check is relaxed (docs/llama-cpp.md).

In a quantised file the matrices of MLPs and mixers have the type asked for, those in
`hybridize.core.gguf.KEPT_FINE` stay q8_0, and what is no matrix stays float32
(docs/quantization.md says why).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridize.core.errors import MachineError, ModelError
from hybridize.core.gguf import FINE, INTERLEAVED, KEPT_FINE, MADE_QUANTS, WRITTEN_QUANTS
from hybridize.engines.llama_quantize import need_quantizer, quantize_file
from hybridize.exports.expected import list_ends
from hybridize.exports.gguf_keys import (
    find_architecture,
    make_keys,
    make_rope_factors,
)
from hybridize.exports.gguf_tensors import (
    MixerSizes,
    find_mixer_sizes,
    list_tensors,
    pad_sizes,
)
from hybridize.exports.gguf_tokenizer import make_tokenizer_keys
from hybridize.models.model import Model

FILE = "model.gguf"
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", **WRITTEN_QUANTS}
"""Type of the matrices -> llama.cpp's name; those in MADE_QUANTS are made from such a file by
`llama-quantize`."""
_FILE_TYPES = {
    **{"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7},
    **{"Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9},
}
_BLOCK = 32
"""Values of a row that share a scale in a quantised type."""
_ALWAYS_FLOAT32 = ("_norm.weight", "ssm_conv1d.weight", "ssm_a", "ssm_d", ".bias")
_EXPAND = 2
"""Inner width of a mamba2 layer over the hidden size, as released builds of llama.cpp want it."""


def write(model: Model, folder: Path, dtype: str | None) -> None:
    """Write `model.gguf` into a folder, padded for released builds of llama.cpp.

    Args:
        model: a mamba2 student, or an all-attention model of a family that llama.cpp has.
        folder: that exists.
        dtype: a name in TYPES or MADE_QUANTS; None is the type of the model's weights. Norms,
            convolutions, biases and decay stay float32.

    Raises:
        ModelError: llama.cpp cannot compute the model exactly; says what would fit.
        MachineError: the package gguf is not installed, or llama-quantize where a type needs it.
    """
    sizes, hidden = find_mixer_sizes(model.network), model.network.config.hidden_size
    padded = None if sizes is None else pad_sizes(sizes, _EXPAND * hidden)
    if sizes is not None and padded is None:
        raise ModelError(
            f"model {model.name} cannot be written as GGUF: its mamba2 layers are "
            f"{sizes.inner_size} wide in groups of "
            f"{sizes.inner_size // sizes.num_groups}, and no number of groups is "
            f"{_EXPAND * hidden} wide, as llama.cpp wants it. Convert with an expand that fits, or "
            "use --format gguf-unpadded with a build without that check."
        )
    _write(model, folder, dtype, padded)


def write_unpadded(model: Model, folder: Path, dtype: str | None) -> None:
    """Write `model.gguf` with the mixers as they are, for a build without the check of the width.

    Raises like `write`.
    """
    _write(model, folder, dtype, find_mixer_sizes(model.network))


def _write(model: Model, folder: Path, dtype: str | None, padded: MixerSizes | None) -> None:
    """Write the file, by way of one in the model's own type where llama-quantize has to make it."""
    if dtype not in MADE_QUANTS:
        _write_file(model, folder / FILE, _find_type(model, dtype), padded)
        return
    name = MADE_QUANTS[dtype]
    need_quantizer(dtype)
    source = folder / f"whole-{FILE}"
    _write_file(model, source, _find_type(model, None), padded)
    kept = [rf"^blk\.[0-9]+\.{part}\.weight$" for part in KEPT_FINE]
    quantize_file(source, folder / FILE, name, kept=kept, fine=FINE)
    source.unlink()


def _write_file(model: Model, file: Path, kind: str, padded: MixerSizes | None) -> None:
    architecture = find_architecture(model)
    keys = make_keys(model, architecture, padded) | {"general.file_type": _FILE_TYPES[kind]}
    if _is_quantised(kind):
        keys["general.quantization_version"] = 2
    config = model.network.config
    keys |= make_tokenizer_keys(model.tokenizer, config.vocab_size, list_ends(model.network))
    gguf = import_gguf()
    writer = gguf.GGUFWriter(file, architecture)
    for name, value in keys.items():
        _add_key(writer, name, value)
    # Two passes, so that one tensor at a time is in memory in its new type.
    for name, tensor in _tensors(model, architecture, padded):
        chosen = _choose_type(name, tensor, kind)
        shape, stored, num_bytes = _describe(gguf, tuple(tensor.shape), chosen)
        raw = gguf.GGMLQuantizationType[chosen]
        writer.add_tensor_info(name, shape, np.dtype(stored), num_bytes, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in _tensors(model, architecture, padded):
        raw = gguf.GGMLQuantizationType[_choose_type(name, tensor, kind)]
        values = tensor.detach().float().cpu().contiguous().numpy()
        writer.write_tensor_data(gguf.quants.quantize(values, raw))
    writer.close()


def _find_type(model: Model, dtype: str | None) -> str:
    if dtype is None:
        dtype = str(model.network.model.embed_tokens.weight.dtype).removeprefix("torch.")
    if dtype not in TYPES:
        raise ModelError(
            f"weights cannot be written as {dtype!r} in GGUF: use {', '.join(TYPES)}; or, with "
            f"llama.cpp's llama-quantize, {', '.join(MADE_QUANTS)}."
        )
    return TYPES[dtype]


def _tensors(
    model: Model, architecture: str, padded: MixerSizes | None
) -> Iterator[tuple[str, Tensor]]:
    interleaved = architecture in INTERLEAVED
    yield from list_tensors(model.network, padded=padded, interleaved=interleaved)
    factors = make_rope_factors(model.network)
    if factors is not None:
        yield "rope_freqs.weight", factors


def _choose_type(name: str, tensor: Tensor, kind: str) -> str:
    """Return the type of one tensor: that of the file for matrices whose rows it can hold."""
    small = tensor.ndim == 1 or name.endswith(_ALWAYS_FLOAT32)
    if small or (_is_quantised(kind) and tensor.shape[-1] % _BLOCK):
        return "F32"
    if _is_quantised(kind) and name.removesuffix(".weight").rpartition(".")[2] in KEPT_FINE:
        return FINE
    if kind == "F16" and tensor.abs().max() > torch.finfo(torch.float16).max:
        raise ModelError(f"{name} has values that float16 cannot hold. Use --dtype bfloat16.")
    return kind


def _is_quantised(kind: str) -> bool:
    return kind in WRITTEN_QUANTS.values()


def _describe(gguf: Any, shape: tuple[int, ...], kind: str) -> tuple[tuple[int, ...], str, int]:
    """Return the shape, type and bytes under which a tensor is announced."""
    stored = {"F32": "float32", "F16": "float16"}.get(kind, "uint8")
    if stored == "uint8":
        shape = gguf.quant_shape_to_byte_shape(shape, gguf.GGMLQuantizationType[kind])
    return shape, stored, int(np.prod(shape)) * np.dtype(stored).itemsize


def _add_key(writer: Any, name: str, value: Any) -> None:
    """Write one key by the type of its value."""
    adders = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
        bytes: writer.add_array,
    }
    adders[type(value)](name, value)


def import_gguf() -> Any:
    """Return the package gguf with its `quants`.

    Raises:
        MachineError: it is not installed.
    """
    try:
        import gguf
        from gguf import quants  # noqa: F401  the package does not import it
    except ImportError as error:
        raise MachineError(
            "the package gguf is not installed, which writes GGUF files. "
            "Install it: pip install 'hybridize[gguf]'."
        ) from error
    return gguf
