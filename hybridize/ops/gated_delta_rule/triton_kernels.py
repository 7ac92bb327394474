"""Kernels of the gated delta rule: changes solved inside a chunk, states carried between chunks.

Legend: L and S tokens of one chunk that read and that write, P channels per value and N per key of
one block, T tokens, H heads, G groups of heads that share queries and keys, K chunks; the letters
of a tile are the order of its axes.

With A the mutual influence of the tokens of a chunk (below the diagonal) and r what survives from
before the chunk, the changes are (I + A)^-1 beta (v - r k S^T); the state after is
keep S + changes^T (k * write), the outputs are (q * r) S^T + (q k^T * within) changes.
"""

import triton
import triton.language as tl

from hybridize.ops.triton_tiles import dot, get_decays, get_steps, get_within, load, load_state


@triton.jit
def get_rates(beta_ptr, mark_ptr, rows, inside, beta_stride, head, COMPUTE: tl.constexpr):
    """Return how much of a change is made (L), none at padding."""
    beta_L = tl.load(beta_ptr + rows * beta_stride + head, mask=inside, other=0).to(COMPUTE)
    if mark_ptr is not None:
        beta_L = tl.where((tl.load(mark_ptr + rows, mask=inside, other=1) & 1) == 1, 0.0, beta_L)
    return beta_L


@triton.jit
def invert(
    k_ptr, g_ptr, beta_ptr, mark_ptr, inverse_ptr,
    num_tokens, num_heads, num_states, per_group, k_stride, g_stride, beta_stride,
    CHUNK: tl.constexpr, N: tl.constexpr,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write (I + A)^-1 of one chunk and head, row after row."""
    k, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i = tl.arange(0, CHUNK)
    rows, inside = row * num_tokens + k * CHUNK + i, k * CHUNK + i < num_tokens
    alike_LS = tl.zeros([CHUNK, CHUNK], COMPUTE)
    for n0 in range(0, num_states, N):
        first = (head // per_group) * num_states + n0
        k_LN = load(k_ptr, k_stride, rows, inside, first, num_states - n0, N)
        alike_LS += dot(k_LN, tl.trans(k_LN), FACTOR, PRECISION, COMPUTE)
    _, log_L = get_steps(g_ptr, 1.0, mark_ptr, rows, inside, g_stride, head, COMPUTE)
    beta_L = get_rates(beta_ptr, mark_ptr, rows, inside, beta_stride, head, COMPUTE)
    alike_LS *= get_within(log_L, mark_ptr, row, k * CHUNK, num_tokens, CHUNK) * beta_L[:, None]
    lower_LS = tl.where(i[:, None] > i[None, :], alike_LS, 0.0)
    inverse_LS = tl.where(i[:, None] == i[None, :], 1.0, 0.0).to(COMPUTE)
    for r in range(1, CHUNK):
        weight_S = tl.sum(tl.where(i[:, None] == r, lower_LS, 0.0), 0)
        # Only the rows before r have weight, and they are done.
        taken_L = tl.sum(weight_S[:, None] * inverse_LS, 0)
        inverse_LS -= tl.where(i[:, None] == r, taken_L[None, :], 0.0)
    at = ((row * tl.num_programs(0) + k) * num_heads + head) * CHUNK * CHUNK
    tl.store(inverse_ptr + at + i[:, None] * CHUNK + i[None, :], inverse_LS)


@triton.jit
def carry(
    k_ptr, v_ptr, g_ptr, beta_ptr, mark_ptr, inverse_ptr, state_ptr,
    states_ptr, last_ptr, changes_ptr,
    num_tokens, num_heads, num_channels, num_states, per_group,
    k_stride, v_stride, g_stride, beta_stride,
    CHUNK: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the changes, the state before each chunk and the last one; N holds whole keys."""
    p0, head, row = tl.program_id(0) * P, tl.program_id(1), tl.program_id(2).to(tl.int64)
    i, p, n = tl.arange(0, CHUNK), p0 + tl.arange(0, P), tl.arange(0, N)
    inside_PN = (p < num_channels)[:, None] & (n < num_states)[None, :]
    place_PN = p[:, None] * num_states + n[None, :]
    own = (row * num_heads + head) * num_channels * num_states
    state_PN = tl.zeros([P, N], COMPUTE)
    if state_ptr is not None:
        state_PN = tl.load(state_ptr + own + place_PN, mask=inside_PN, other=0).to(COMPUTE)
    num_chunks = tl.cdiv(num_tokens, CHUNK)
    for k in range(num_chunks):
        at = (row * num_chunks + k) * num_heads + head
        tl.store(states_ptr + at * num_channels * num_states + place_PN, state_PN, mask=inside_PN)
        rows, inside = row * num_tokens + k * CHUNK + i, k * CHUNK + i < num_tokens
        first = (head // per_group) * num_states
        k_LN = load(k_ptr, k_stride, rows, inside, first, num_states, N).to(COMPUTE)
        v_LP = load(v_ptr, v_stride, rows, inside, head * num_channels + p0, num_channels - p0, P)
        g_L, log_L = get_steps(g_ptr, 1.0, mark_ptr, rows, inside, g_stride, head, COMPUTE)
        beta_L = get_rates(beta_ptr, mark_ptr, rows, inside, beta_stride, head, COMPUTE)
        read_L, write_L, keep = get_decays(
            g_L, log_L, 1.0, mark_ptr, row, k * CHUNK, num_tokens, CHUNK
        )
        inverse_LS = tl.load(inverse_ptr + at * CHUNK * CHUNK + i[:, None] * CHUNK + i[None, :])
        held_LP = dot(k_LN * read_L[:, None], tl.trans(state_PN), FACTOR, PRECISION, COMPUTE)
        missing_LP = (v_LP.to(COMPUTE) - held_LP) * beta_L[:, None]
        changes_LP = dot(inverse_LS, missing_LP, FACTOR, PRECISION, COMPUTE)
        place_LP = (rows[:, None] * num_heads + head) * num_channels + p[None, :]
        tl.store(
            changes_ptr + place_LP, changes_LP, mask=inside[:, None] & (p < num_channels)[None, :]
        )
        written_LN = k_LN * write_L[:, None]
        state_PN = keep * state_PN
        state_PN += dot(tl.trans(changes_LP), written_LN, FACTOR, PRECISION, COMPUTE)
    tl.store(last_ptr + own + place_PN, state_PN, mask=inside_PN)


@triton.jit
def read(
    q_ptr, k_ptr, g_ptr, mark_ptr, changes_ptr, states_ptr, y_ptr,
    num_tokens, num_heads, num_channels, num_states, per_group, q_stride, k_stride, g_stride,
    CHUNK: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the outputs of one chunk, from its own changes and the state before it."""
    num_chunks = tl.cdiv(num_tokens, CHUNK)
    k, p0 = tl.program_id(0) % num_chunks, (tl.program_id(0) // num_chunks) * P
    head, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    t, p = k * CHUNK + tl.arange(0, CHUNK), p0 + tl.arange(0, P)
    rows, inside = row * num_tokens + t, t < num_tokens
    states_ptr += ((row * num_chunks + k) * num_heads + head) * num_channels * num_states
    scores_LS = tl.zeros([CHUNK, CHUNK], COMPUTE)
    carried_LP = tl.zeros([CHUNK, P], COMPUTE)
    for n0 in range(0, num_states, N):
        first, count = (head // per_group) * num_states + n0, num_states - n0
        q_LN = load(q_ptr, q_stride, rows, inside, first, count, N)
        k_SN = load(k_ptr, k_stride, rows, inside, first, count, N)
        state_PN = load_state(states_ptr, num_channels, num_states, p0, n0, P, N)
        scores_LS += dot(q_LN, tl.trans(k_SN), FACTOR, PRECISION, COMPUTE)
        carried_LP += dot(q_LN, tl.trans(state_PN), FACTOR, PRECISION, COMPUTE)
    g_L, log_L = get_steps(g_ptr, 1.0, mark_ptr, rows, inside, g_stride, head, COMPUTE)
    read_L, _, _ = get_decays(g_L, log_L, 1.0, mark_ptr, row, k * CHUNK, num_tokens, CHUNK)
    scores_LS *= get_within(log_L, mark_ptr, row, k * CHUNK, num_tokens, CHUNK)
    own, count = head * num_channels + p0, num_channels - p0
    changes_SP = load(changes_ptr, num_heads * num_channels, rows, inside, own, count, P)
    y_LP = carried_LP * read_L[:, None] + dot(scores_LS, changes_SP, FACTOR, PRECISION, COMPUTE)
    place_LP = (rows[:, None] * num_heads + head) * num_channels + p[None, :]
    tl.store(y_ptr + place_LP, y_LP, mask=inside[:, None] & (p < num_channels)[None, :])
