"""What training computes of a layer value by value, in one pass over memory where a kernel can.

Legend: B batch, T tokens, D model width.

A layer of a small model waits for memory: a norm of transformers goes over its input six times and
keeps three copies of it for the backward pass. The results are those of the teacher's own modules
to rounding, not bit for bit, so that text without `segments` still runs through the modules.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.activations import SiLUActivation

from hybridize.ops import gated_norm, gated_unit


def fused_norm(norm: Any, hidden_BTD: Tensor) -> Tensor:
    """Apply an RMS norm of transformers."""
    return gated_norm(hidden_BTD, None, norm.weight, num_groups=1, eps=norm.variance_epsilon)


def fused_mlp(mlp: Any, hidden_BTD: Tensor) -> Tensor:
    """Apply an MLP of transformers; one of another form than SwiGLU runs as it is."""
    made_BTD: Tensor
    if not hasattr(mlp, "gate_proj") or not isinstance(mlp.act_fn, SiLUActivation):
        made_BTD = mlp(hidden_BTD)
        return made_BTD
    gate_BTF, up_BTF = mlp.gate_proj(hidden_BTD), mlp.up_proj(hidden_BTD)
    if gate_BTF.dtype == torch.float32:
        made_BTD = mlp.down_proj(gated_unit(gate_BTF, up_BTF))
    else:
        made_BTD = mlp.down_proj(mlp.act_fn(gate_BTF) * up_BTF)
    return made_BTD
