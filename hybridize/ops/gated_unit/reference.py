"""The gated unit in plain PyTorch: the definition of correct."""

import torch.nn.functional as F
from torch import Tensor


def gated_unit_reference(gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
    """See `hybridize.ops.gated_unit.gated_unit`."""
    return F.silu(gate_BTF) * up_BTF
