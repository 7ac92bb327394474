"""Where the documents of packed rows lie, and the turning of queries and keys by their positions.

Legend: B rows, T tokens of a row, N tokens of all rows, M documents, L tokens of the longest of
them, K head width, S places of all groups together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Rope = tuple[Tensor, Tensor]
"""Cosines and sines of positions."""

SHORTEST_SHARE = 0.75
"""A document joins a group if it is at least this share as long as the group's longest."""


@dataclass(frozen=True)
class DocumentGroups:
    """The documents of a batch of rows, in groups of like length."""

    starts_M: Tensor
    """Of each document, the place of its first token in the flattened batch; the longest first."""
    lengths_M: Tensor
    """Tokens of each document."""
    padding: Tensor
    """Places in the flattened batch that belong to no document."""
    places: tuple[Tensor, ...]
    """Of each group, the place of each token in the flattened batch, (M, L); what is beyond the end
    of a document repeats its last place."""
    home_N: Tensor
    """Of each token of the flattened batch, its place among all S; S itself for padding."""
    longest: int
    """Tokens of the longest document."""

    def to(self, device: torch.device) -> "DocumentGroups":
        """Return the same on another device."""
        return DocumentGroups(
            starts_M=self.starts_M.to(device),
            lengths_M=self.lengths_M.to(device),
            padding=self.padding.to(device),
            places=tuple(places_ML.to(device) for places_ML in self.places),
            home_N=self.home_N.to(device),
            longest=self.longest,
        )


def group_documents(segments_BT: Tensor) -> DocumentGroups:
    """Find the documents of packed rows: runs of equal numbers above 0."""
    num_tokens = segments_BT.shape[1]
    flat_N = segments_BT.flatten()
    index_N = torch.arange(len(flat_N), device=flat_N.device)
    is_start_N = index_N % num_tokens == 0
    is_start_N[1:] |= flat_N[1:] != flat_N[:-1]
    starts_R = is_start_N.nonzero()[:, 0]
    ends_R = torch.cat([starts_R[1:], starts_R.new_tensor([len(flat_N)])])
    real_R = flat_N[starts_R] > 0
    starts_R, lengths_R = starts_R[real_R], (ends_R - starts_R)[real_R]
    order_R = lengths_R.argsort(descending=True, stable=True)
    starts_M, lengths_M = starts_R[order_R], lengths_R[order_R]

    places: list[Tensor] = []
    home_N = torch.full_like(flat_N, -1)
    offset = 0
    for group in _split(lengths_M.tolist()):
        longest = int(lengths_M[group.start])
        steps_L = torch.arange(longest, device=flat_N.device)
        inside_ML = torch.minimum(steps_L, lengths_M[group, None] - 1)
        places_ML = starts_M[group, None] + inside_ML
        real_ML = steps_L < lengths_M[group, None]
        home_N[places_ML[real_ML]] = offset + real_ML.flatten().nonzero()[:, 0]
        offset += places_ML.numel()
        places.append(places_ML)
    padding = (home_N < 0).nonzero()[:, 0]
    home_N[padding] = offset
    return DocumentGroups(
        starts_M=starts_M,
        lengths_M=lengths_M,
        padding=padding,
        places=tuple(places),
        home_N=home_N,
        longest=int(lengths_M[0]) if len(lengths_M) else 0,
    )


def rotate(values_LHK: Tensor, rope: Rope | None) -> Tensor:
    """Turn the two halves of each head by the angles of its position; (..., L, heads, K).

    Args:
        rope: cosines and sines of the positions, (L or more, K) each; None turns nothing.
    """
    if rope is None:
        return values_LHK
    cos_L1K, sin_L1K = (values_LK[: values_LHK.shape[-3], None] for values_LK in rope)
    first, second = values_LHK.chunk(2, dim=-1)
    return values_LHK * cos_L1K + torch.cat([-second, first], dim=-1) * sin_L1K


def _split(lengths: Sequence[int]) -> list[slice]:
    """Cut descending lengths into groups whose shortest is not much shorter than the longest."""
    groups: list[slice] = []
    first = 0
    for place in range(1, len(lengths) + 1):
        if place == len(lengths) or lengths[place] < SHORTEST_SHARE * lengths[first]:
            groups.append(slice(first, place))
            first = place
    return groups if lengths else []
