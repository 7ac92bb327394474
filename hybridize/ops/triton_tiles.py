"""Pieces of kernels that the recurrences with one decay per head share.

Legend: L and S tokens of one chunk that read and that write, P channels and N states of one block;
the letters of a tile are the order of its axes.

`mark` holds for every token twice the number of documents begun before it, plus 1 at padding.
"""

import triton
import triton.language as tl


@triton.jit
def load(ptr, stride, rows, inside, first, count, COLUMNS: tl.constexpr):
    """Load columns from `first` on of the given rows, zeros outside."""
    c = tl.arange(0, COLUMNS)
    place = rows[:, None] * stride + first + c[None, :]
    return tl.load(ptr + place, mask=inside[:, None] & (c < count)[None, :], other=0)


@triton.jit
def load_state(ptr, num_channels, num_states, p0, n0, P: tl.constexpr, N: tl.constexpr):
    """Load one block (P, N) of the states of one head, zeros outside."""
    p, n = p0 + tl.arange(0, P), n0 + tl.arange(0, N)
    inside = (p < num_channels)[:, None] & (n < num_states)[None, :]
    return tl.load(ptr + p[:, None] * num_states + n[None, :], mask=inside, other=0)


@triton.jit
def dot(a, b, FACTOR: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr):
    """Multiply two tiles, rounded to the type of factors; the sums are as wide as COMPUTE."""
    return tl.dot(a.to(FACTOR), b.to(FACTOR), input_precision=PRECISION, out_dtype=COMPUTE)


@triton.jit
def get_steps(dt_ptr, A, mark_ptr, rows, inside, dt_stride, head, COMPUTE: tl.constexpr):
    """Return step sizes (L), none at padding, and the log of what survives up to each token."""
    dt_L = tl.load(dt_ptr + rows * dt_stride + head, mask=inside, other=0).to(COMPUTE)
    if mark_ptr is not None:
        dt_L = tl.where((tl.load(mark_ptr + rows, mask=inside, other=1) & 1) == 1, 0.0, dt_L)
    return dt_L, tl.cumsum(dt_L * A, 0)


@triton.jit
def get_decays(dt_L, log_L, A, mark_ptr, row, start, num_tokens, CHUNK: tl.constexpr):
    """Return what survives from before the chunk to a token (L), from a token to the end of the
    chunk (L), and from before the chunk to its end."""
    total = tl.sum(dt_L * A, 0)
    read_L, write_L, keep = tl.exp(log_L), tl.exp(total - log_L), tl.exp(total)
    if mark_ptr is not None:
        t = tl.minimum(start + tl.arange(0, CHUNK), num_tokens - 1)
        mark_ptr += row * num_tokens
        document_L = tl.load(mark_ptr + t) >> 1
        before = tl.where(start > 0, tl.load(mark_ptr + tl.maximum(start - 1, 0)) >> 1, 0)
        last = tl.load(mark_ptr + tl.minimum(start + CHUNK, num_tokens) - 1) >> 1
        read_L = tl.where(document_L == before, read_L, 0.0)
        write_L = tl.where(document_L == last, write_L, 0.0)
        keep = tl.where(last == before, keep, 0.0)
    return read_L, write_L, keep


@triton.jit
def get_within(log_L, mark_ptr, row, start, num_tokens, CHUNK: tl.constexpr):
    """Return what survives from one token of the chunk to another (L, S)."""
    i = tl.arange(0, CHUNK)
    seen_LS = i[:, None] >= i[None, :]
    if mark_ptr is not None:
        t = tl.minimum(start + i, num_tokens - 1)
        document_L = tl.load(mark_ptr + row * num_tokens + t) >> 1
        seen_LS = seen_LS & (document_L[:, None] == document_L[None, :])
    return tl.exp(tl.where(seen_LS, log_L[:, None] - log_L[None, :], -float("inf")))


@triton.jit
def count_crossings(pairs_LS, read_L, written_S, CHUNK: tl.constexpr):
    """Return for each token the sum over all that its decay stands between (L).

    These are the pairs that write before it and read at or after it, reads of the state from
    before the chunk at or after it, and writes before it that reach the end of the chunk. Sums of
    what crosses lose less than differences of running sums.
    """
    i = tl.arange(0, CHUNK)
    until_LS = tl.cumsum(pairs_LS, 1) - pairs_LS
    crossing_L = tl.sum(tl.where(i[:, None] >= i[None, :], until_LS, 0.0), 0)
    reads_L = tl.sum(tl.where(i[:, None] >= i[None, :], read_L[:, None], 0.0), 0)
    writes_L = tl.sum(tl.where(i[:, None] < i[None, :], written_S[:, None], 0.0), 0)
    return crossing_L + reads_L + writes_L
