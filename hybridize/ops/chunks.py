"""Cutting rows of heads into chunks, and what survives within and between chunks.

Legend: B batch, T tokens, H heads, K chunks, L and S tokens of one chunk, X any width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cut(values_BTHX: Tensor, chunk: int) -> Tensor:
    """Cut tokens into chunks, (B, K, H, L, X), the last one filled with zeros."""
    missing = -values_BTHX.shape[1] % chunk
    if missing:
        values_BTHX = F.pad(values_BTHX, (0, 0, 0, 0, 0, missing))
    return values_BTHX.unflatten(1, (-1, chunk)).transpose(2, 3)


def get_decays(
    log_BKHL: Tensor, document_BT: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what survives from a write to a read, from before to a read, from a write to after."""
    # What may not be seen is pushed to -inf by adding, which costs nothing in the backward pass.
    hidden_LS = log_BKHL.new_full((chunk, chunk), -torch.inf).triu(1)
    read_BKHL, write_BKHL = log_BKHL, log_BKHL[..., -1:] - log_BKHL
    if document_BT is None:
        within_BKHLS = (log_BKHL[..., :, None] + hidden_LS) - log_BKHL[..., None, :]
        return within_BKHLS.exp(), read_BKHL.exp(), write_BKHL.exp()

    missing = -document_BT.shape[1] % chunk
    if missing:
        document_BT = torch.cat([document_BT, document_BT[:, -1:].expand(-1, missing)], dim=1)
    document_BK1L = document_BT.unflatten(1, (-1, chunk))[:, :, None]
    before_BK11 = F.pad(document_BK1L[:, :-1, :, -1:], (0, 0, 0, 0, 1, 0))
    other_BK1LS = document_BK1L[..., :, None] != document_BK1L[..., None, :]
    hidden_BK1LS = hidden_LS.expand(other_BK1LS.shape).masked_fill(other_BK1LS, -torch.inf)
    within_BKHLS = (log_BKHL[..., :, None] + hidden_BK1LS) - log_BKHL[..., None, :]
    read_BKHL = read_BKHL.masked_fill(document_BK1L != before_BK11, -torch.inf)
    write_BKHL = write_BKHL.masked_fill(document_BK1L != document_BK1L[..., -1:], -torch.inf)
    return within_BKHLS.exp(), read_BKHL.exp(), write_BKHL.exp()
