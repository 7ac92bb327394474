"""What document numbers mean to an operator that carries a state along a row.

Legend: B batch, T tokens.

A row may hold several documents, numbered by `segments_BT`, with 0 for padding. Three rules hold in
every operator: padding neither writes to the state nor lets it decay; the state is cleared at the
first token of a document; a state that is handed in belongs to the first document of the row.
"""

import torch
from torch import Tensor


def find_starts(segments_BT: Tensor) -> Tensor:
    """Mark the first token of every document but the first of its row, as booleans (B, T)."""
    positions_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    last_real_BT = torch.where(segments_BT != 0, positions_T, 0).cummax(dim=1).values
    latest_BT = segments_BT.gather(
        1, last_real_BT
    )  # document of the latest real token, 0 before the first
    starts_BT = torch.zeros_like(segments_BT, dtype=torch.bool)
    before, after = latest_BT[:, :-1], segments_BT[:, 1:]
    starts_BT[:, 1:] = (after != 0) & (before != 0) & (before != after)
    return starts_BT


def has_gaps(segments_BT: Tensor) -> bool:
    """Tell whether padding stands anywhere but at the end of a row."""
    real_BT = segments_BT != 0
    return bool((real_BT[:, 1:] & ~real_BT[:, :-1]).any()) or not bool(real_BT[:, 0].all())


def get_compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Name the precision of decays and states: float32, or float64 for float64 inputs."""
    return torch.promote_types(dtype, torch.float32)
