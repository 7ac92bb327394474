"""A GGUF file's weights brought back into our own class, with the values its blocks hold.

So what rounding does to a model is measured without an engine: the function is ours, the numbers
are those of the file, in float32.
"""

from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridize.core.errors import ModelError
from hybridize.core.gguf import INTERLEAVED
from hybridize.core.gguf_header import get_size, read_gguf_header
from hybridize.exports.gguf import import_gguf
from hybridize.exports.gguf_tensors import arrange, find_mixer_sizes, pad_sizes
from hybridize.models.hybrid import HybridForCausalLM


def read_back(network: HybridForCausalLM, file: Path) -> HybridForCausalLM:
    """Return a float32 copy of a model with the weights of a GGUF file that was written of it.

    Raises:
        ModelError: the file is of another model, or damaged.
        MachineError: the package gguf is not installed.
    """
    gguf, header = import_gguf(), read_gguf_header(file)
    sizes, inner = find_mixer_sizes(network), get_size(header, "ssm.inner_size")
    padded = None if sizes is None or inner is None else pad_sizes(sizes, inner)
    interleaved = header["general.architecture"] in INTERLEAVED
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    copy = deepcopy(network).float().eval()
    own = copy.state_dict()
    for name, tensor in own.items():
        # Numbered places, sent the way of the weights, tell where each weight went: 0 is padding.
        places = torch.arange(1, tensor.numel() + 1).view(tensor.shape)
        sent = arrange({name: places}, network, padded=padded, interleaved=interleaved)
        for goal, placed in sent:
            tensor.copy_(_gather(gguf, stored, goal, placed, tensor))
    return copy


def count_types(file: Path) -> dict[str, int]:
    """Count the tensors of each type in a GGUF file, the most frequent first."""
    tensors = import_gguf().GGUFReader(file).tensors
    return dict(Counter(tensor.tensor_type.name for tensor in tensors).most_common())


def _gather(
    gguf: Any, stored: Mapping[str, Any], goal: str, placed: Tensor, tensor: Tensor
) -> Tensor:
    """Return the values of one tensor of the file in their places, of the shape of `tensor`."""
    if goal not in stored:
        raise ModelError(f"the GGUF file has no tensor {goal}. Write it again from this model.")
    found = stored[goal]
    values = torch.from_numpy(gguf.quants.dequantize(np.array(found.data), found.tensor_type))
    if values.numel() != placed.numel():
        raise ModelError(
            f"{goal} has {values.numel()} values in the GGUF file, and {placed.numel()} in the "
            "model. Write it again from this model."
        )
    flat, places = values.float().flatten(), placed.flatten()
    whole = torch.empty(tensor.numel())
    whole[places[places > 0] - 1] = flat[places > 0]
    whole = whole.view(tensor.shape)
    return torch.log(-whole) if goal.endswith("ssm_a") else whole
