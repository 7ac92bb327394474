"""Kernels of state-space duality: states carried from chunk to chunk, and what a chunk does inside.

Legend: L and S tokens of one chunk that read and that write, P channels and N states of one block,
T tokens, H heads, G groups of heads that share B and C, K chunks; the letters of a tile are the
order of its axes.
"""

import triton
import triton.language as tl

from hybridize.ops.triton_tiles import dot, get_decays, get_steps, get_within, load, load_state


@triton.jit
def carry(
    x_ptr, dt_ptr, A_ptr, B_ptr, mark_ptr, state_ptr, states_ptr, last_ptr,
    num_tokens, num_heads, num_channels, num_states, per_group, x_stride, dt_stride, B_stride,
    BACKWARDS: tl.constexpr, CHUNK: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the state before each chunk, and after the last.

    Backwards, x is the gradient of y and B is C: writes the gradient of the state after each chunk,
    and before the first.
    """
    head, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    blocks = tl.cdiv(num_states, N)
    p0, n0 = (tl.program_id(0) // blocks) * P, (tl.program_id(0) % blocks) * N
    p, n = p0 + tl.arange(0, P), n0 + tl.arange(0, N)
    inside_PN = (p < num_channels)[:, None] & (n < num_states)[None, :]
    place_PN = p[:, None] * num_states + n[None, :]
    A = tl.load(A_ptr + head).to(COMPUTE)
    own = (row * num_heads + head) * num_channels * num_states
    state_PN = tl.zeros([P, N], COMPUTE)
    if state_ptr is not None:
        state_PN = tl.load(state_ptr + own + place_PN, mask=inside_PN, other=0).to(COMPUTE)
    num_chunks = tl.cdiv(num_tokens, CHUNK)
    for step in range(num_chunks):
        k = num_chunks - 1 - step if BACKWARDS else step
        at = ((row * num_chunks + k) * num_heads + head) * num_channels * num_states
        tl.store(states_ptr + at + place_PN, state_PN, mask=inside_PN)
        t = k * CHUNK + tl.arange(0, CHUNK)
        rows, inside = row * num_tokens + t, t < num_tokens
        x_LP = load(x_ptr, x_stride, rows, inside, head * num_channels + p0, num_channels - p0, P)
        group = head // per_group
        B_LN = load(B_ptr, B_stride, rows, inside, group * num_states + n0, num_states - n0, N)
        dt_L, log_L = get_steps(dt_ptr, A, mark_ptr, rows, inside, dt_stride, head, COMPUTE)
        read_L, write_L, keep = get_decays(
            dt_L, log_L, A, mark_ptr, row, k * CHUNK, num_tokens, CHUNK
        )
        share_L = read_L if BACKWARDS else write_L * dt_L
        shared_LP = x_LP.to(COMPUTE) * share_L[:, None]
        state_PN = keep * state_PN + dot(tl.trans(shared_LP), B_LN, FACTOR, PRECISION, COMPUTE)
    tl.store(last_ptr + own + place_PN, state_PN, mask=inside_PN)


@triton.jit
def read(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, mark_ptr, states_ptr, y_ptr,
    num_tokens, num_heads, num_channels, num_states, per_group,
    x_stride, dt_stride, B_stride, C_stride,
    CHUNK: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the outputs of one chunk, from its own tokens and the state before it."""
    num_chunks = tl.cdiv(num_tokens, CHUNK)
    k, p0 = tl.program_id(0) % num_chunks, (tl.program_id(0) // num_chunks) * P
    head, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    A, group = tl.load(A_ptr + head).to(COMPUTE), head // per_group
    t, p = k * CHUNK + tl.arange(0, CHUNK), p0 + tl.arange(0, P)
    rows, inside = row * num_tokens + t, t < num_tokens
    states_ptr += ((row * num_chunks + k) * num_heads + head) * num_channels * num_states
    scores_LS = tl.zeros([CHUNK, CHUNK], COMPUTE)
    carried_LP = tl.zeros([CHUNK, P], COMPUTE)
    for n0 in range(0, num_states, N):
        first, count = group * num_states + n0, num_states - n0
        B_SN = load(B_ptr, B_stride, rows, inside, first, count, N)
        C_LN = load(C_ptr, C_stride, rows, inside, first, count, N)
        state_PN = load_state(states_ptr, num_channels, num_states, p0, n0, P, N)
        scores_LS += dot(C_LN, tl.trans(B_SN), FACTOR, PRECISION, COMPUTE)
        carried_LP += dot(C_LN, tl.trans(state_PN), FACTOR, PRECISION, COMPUTE)
    dt_L, log_L = get_steps(dt_ptr, A, mark_ptr, rows, inside, dt_stride, head, COMPUTE)
    read_L, _, _ = get_decays(dt_L, log_L, A, mark_ptr, row, k * CHUNK, num_tokens, CHUNK)
    scores_LS *= get_within(log_L, mark_ptr, row, k * CHUNK, num_tokens, CHUNK)
    own = head * num_channels + p0
    x_SP = load(x_ptr, x_stride, rows, inside, own, num_channels - p0, P).to(COMPUTE)
    y_LP = carried_LP * read_L[:, None]
    y_LP += dot(scores_LS, x_SP * dt_L[:, None], FACTOR, PRECISION, COMPUTE)
    if D_ptr is not None:
        y_LP += tl.load(D_ptr + head).to(COMPUTE) * x_SP
    place = rows[:, None] * num_heads * num_channels + head * num_channels + p[None, :]
    tl.store(y_ptr + place, y_LP, mask=inside[:, None] & (p < num_channels)[None, :])
