"""Zero heads beside those of a student, which change no number: see `hybridize.core.padding`.

Legend: D model width, H query heads, K key-value heads, S query heads to each of them, P width of a
head, G groups of Mamba heads, E heads in a group, N state size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hybridize.core.padding import Heads

Tensors = dict[str, Tensor]


def pad_attention(tensors: Tensors, prefix: str, heads: Heads, *, num_kv_heads: int) -> None:
    """Add zero heads to the projections of one attention layer, in place.

    Args:
        tensors: all tensors by name.
        prefix: of the names of the layer, up to the dot before q_proj.
        heads: of the layer that is written.
        num_kv_heads: of the layer as it is.
    """
    if not heads.added_heads:
        return
    wanted = (heads.num_kv_heads, heads.per_group)
    for part in ("weight", "bias"):
        query = f"{prefix}.q_proj.{part}"
        if query in tensors:
            width = tensors[query].shape[0] // (heads.num_heads - heads.added_heads)
            per_group = tensors[query].shape[0] // (num_kv_heads * width)
            rows_KSP = tensors[query].unflatten(0, (num_kv_heads, per_group, width))
            tensors[query] = _pad(rows_KSP, wanted).flatten(0, 2)
        for name in (f"{prefix}.k_proj.{part}", f"{prefix}.v_proj.{part}"):
            if name in tensors:
                rows_KP = tensors[name].unflatten(0, (num_kv_heads, -1))
                tensors[name] = _pad(rows_KP, wanted[:1]).flatten(0, 1)
    output = f"{prefix}.o_proj.weight"
    columns_KSPD = tensors[output].T.unflatten(0, (num_kv_heads, per_group, width))
    tensors[output] = _pad(columns_KSPD, wanted).flatten(0, 2).T


def pad_mamba2(
    tensors: Tensors, prefix: str, *, num_groups: int, wanted_groups: int, state_size: int
) -> None:
    """Add zero heads with zero groups of their own to one Mamba-2 layer, in place.

    A group of its own matters: the norm is one for each group, and would see the zeros.

    Args:
        tensors: all tensors by name.
        prefix: of the names of the layer, up to the dot before in_proj.
        num_groups: of the layer as it is.
        wanted_groups: of the layer that is written.
        state_size: rows of B, and of C, for each group.
    """
    if num_groups == wanted_groups:
        return
    num_heads = tensors[f"{prefix}.D"].shape[0]
    inner = tensors[f"{prefix}.out_proj.weight"].shape[1]
    bc = num_groups * state_size
    for name, sizes in {
        "in_proj.weight": (inner, inner, bc, bc, num_heads),
        "conv1d.weight": (inner, bc, bc),
        "conv1d.bias": (inner, bc, bc),
        "norm.weight": (inner,),
        "dt_bias": (num_heads,),
        "A_log": (num_heads,),
        "D": (num_heads,),
    }.items():
        name = f"{prefix}.{name}"
        tensors[name] = _pad_groups(tensors[name], sizes, num_groups, wanted_groups)
    name = f"{prefix}.out_proj.weight"
    tensors[name] = _pad_groups(tensors[name].T, (inner,), num_groups, wanted_groups).T


def _pad_groups(rows: Tensor, sizes: Sequence[int], num_groups: int, wanted: int) -> Tensor:
    """Add rows for the new groups behind each of the parts, whose rows `sizes` counts."""
    parts = rows.split(list(sizes))
    return torch.cat(
        [_pad(p.unflatten(0, (num_groups, -1)), (wanted,)).flatten(0, 1) for p in parts]
    )


def _pad(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return a tensor whose first dimensions are `sizes`: this one, and zeros behind it."""
    padded = tensor.new_zeros(*sizes, *tensor.shape[len(sizes) :])
    padded[tuple(slice(size) for size in tensor.shape[: len(sizes)])] = tensor
    return padded
