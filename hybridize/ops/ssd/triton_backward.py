"""Kernels of the gradients of state-space duality inside a chunk.

Legend: as in `triton_kernels`. Both kernels are given the gradient of the state after each chunk,
which `carry` writes when it runs backwards.
"""

import triton
import triton.language as tl

from hybridize.ops.triton_tiles import (
    count_crossings,
    dot,
    get_decays,
    get_steps,
    get_within,
    load,
    load_state,
)


@triton.jit
def write_values(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, mark_ptr, grads_ptr, grad_ptr,
    grad_x_ptr, grad_dt_ptr, grad_D_ptr,
    num_tokens, num_heads, num_channels, num_states, per_group,
    x_stride, dt_stride, B_stride, C_stride, grad_stride,
    CHUNK: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradient of x, and by block of P what it adds to those of dt and D."""
    num_chunks = tl.cdiv(num_tokens, CHUNK)
    k, block = tl.program_id(0) % num_chunks, tl.program_id(0) // num_chunks
    head, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    p0, A, group = block * P, tl.load(A_ptr + head).to(COMPUTE), head // per_group
    t, p = k * CHUNK + tl.arange(0, CHUNK), p0 + tl.arange(0, P)
    rows, inside = row * num_tokens + t, t < num_tokens
    grads_ptr += ((row * num_chunks + k) * num_heads + head) * num_channels * num_states
    scores_LS = tl.zeros([CHUNK, CHUNK], COMPUTE)
    carried_SP = tl.zeros([CHUNK, P], COMPUTE)
    for n0 in range(0, num_states, N):
        first, count = group * num_states + n0, num_states - n0
        B_SN = load(B_ptr, B_stride, rows, inside, first, count, N)
        C_LN = load(C_ptr, C_stride, rows, inside, first, count, N)
        after_PN = load_state(grads_ptr, num_channels, num_states, p0, n0, P, N)
        scores_LS += dot(C_LN, tl.trans(B_SN), FACTOR, PRECISION, COMPUTE)
        carried_SP += dot(B_SN, tl.trans(after_PN), FACTOR, PRECISION, COMPUTE)
    dt_L, log_L = get_steps(dt_ptr, A, mark_ptr, rows, inside, dt_stride, head, COMPUTE)
    _, write_L, _ = get_decays(dt_L, log_L, A, mark_ptr, row, k * CHUNK, num_tokens, CHUNK)
    scores_LS *= get_within(log_L, mark_ptr, row, k * CHUNK, num_tokens, CHUNK)
    own, count = head * num_channels + p0, num_channels - p0
    grad_LP = load(grad_ptr, grad_stride, rows, inside, own, count, P).to(COMPUTE)
    x_SP = load(x_ptr, x_stride, rows, inside, own, count, P).to(COMPUTE)
    written_SP = carried_SP * write_L[:, None]
    written_SP += dot(tl.trans(scores_LS), grad_LP, FACTOR, PRECISION, COMPUTE)
    grad_x_SP = written_SP * dt_L[:, None]
    if D_ptr is not None:
        grad_x_SP += tl.load(D_ptr + head).to(COMPUTE) * grad_LP
        at = ((block * tl.num_programs(2) + row) * num_chunks + k) * num_heads + head
        tl.store(grad_D_ptr + at, tl.sum(tl.sum(x_SP * grad_LP, 1), 0))
    place = rows[:, None] * num_heads * num_channels + head * num_channels + p[None, :]
    tl.store(grad_x_ptr + place, grad_x_SP, mask=inside[:, None] & (p < num_channels)[None, :])
    at = (block * tl.num_programs(2) * num_tokens + rows) * num_heads + head
    tl.store(grad_dt_ptr + at, tl.sum(x_SP * written_SP, 1), mask=inside)


@triton.jit
def write_keys(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, mark_ptr, states_ptr, grads_ptr, grad_ptr,
    grad_B_ptr, grad_C_ptr, grad_log_ptr,
    num_tokens, num_heads, num_channels, num_states, per_group,
    x_stride, dt_stride, B_stride, C_stride, grad_stride,
    CHUNK: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradients of B and C, summed over the heads of a group, and by block of N that of
    the log decay of each token."""
    num_chunks = tl.cdiv(num_tokens, CHUNK)
    k, block = tl.program_id(0) % num_chunks, tl.program_id(0) // num_chunks
    group, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    n0 = block * N
    t, n = k * CHUNK + tl.arange(0, CHUNK), n0 + tl.arange(0, N)
    rows, inside = row * num_tokens + t, t < num_tokens
    first, count = group * num_states + n0, num_states - n0
    B_SN = load(B_ptr, B_stride, rows, inside, first, count, N)
    C_LN = load(C_ptr, C_stride, rows, inside, first, count, N)
    scores_LS = dot(C_LN, tl.trans(B_SN), FACTOR, PRECISION, COMPUTE)
    grad_B_SN = tl.zeros([CHUNK, N], COMPUTE)
    grad_C_LN = tl.zeros([CHUNK, N], COMPUTE)
    for i in range(per_group):
        head = group * per_group + i
        A = tl.load(A_ptr + head).to(COMPUTE)
        dt_L, log_L = get_steps(dt_ptr, A, mark_ptr, rows, inside, dt_stride, head, COMPUTE)
        read_L, write_L, keep = get_decays(
            dt_L, log_L, A, mark_ptr, row, k * CHUNK, num_tokens, CHUNK
        )
        at = ((row * num_chunks + k) * num_heads + head) * num_channels * num_states
        pairs_LS, asked_LN, given_SN, kept = _meet_states(
            x_ptr, grad_ptr, states_ptr + at, grads_ptr + at, dt_L, rows, inside, head, n0,
            num_channels, num_states, x_stride, grad_stride,
            CHUNK, P, N, COMPUTE, FACTOR, PRECISION,
        )  # fmt: skip
        pairs_LS *= get_within(log_L, mark_ptr, row, k * CHUNK, num_tokens, CHUNK)
        asked_LN *= read_L[:, None]
        given_SN *= write_L[:, None]
        grad_C_LN += asked_LN + dot(pairs_LS, B_SN, FACTOR, PRECISION, COMPUTE)
        grad_B_SN += given_SN + dot(tl.trans(pairs_LS), C_LN, FACTOR, PRECISION, COMPUTE)
        grad_log_L = kept * keep + count_crossings(
            pairs_LS * scores_LS,
            tl.sum(C_LN.to(COMPUTE) * asked_LN, 1),
            tl.sum(B_SN.to(COMPUTE) * given_SN, 1),
            CHUNK,
        )
        at = (block * tl.num_programs(2) * num_tokens + rows) * num_heads + head
        tl.store(grad_log_ptr + at, grad_log_L, mask=inside)
    place = rows[:, None] * tl.num_programs(1) * num_states + group * num_states + n[None, :]
    inside_LN = inside[:, None] & (n < num_states)[None, :]
    tl.store(grad_B_ptr + place, grad_B_SN, mask=inside_LN)
    tl.store(grad_C_ptr + place, grad_C_LN, mask=inside_LN)


@triton.jit
def _meet_states(
    x_ptr, grad_ptr, states_ptr, grads_ptr, dt_L, rows, inside, head, n0,
    num_channels, num_states, x_stride, grad_stride,
    CHUNK: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return, summed over channels, output gradients times writes (L, S), output gradients times
    the state before (L, N), writes times the gradient of the state after (S, N), and both states'
    product."""
    pairs_LS = tl.zeros([CHUNK, CHUNK], COMPUTE)
    asked_LN = tl.zeros([CHUNK, N], COMPUTE)
    given_SN = tl.zeros([CHUNK, N], COMPUTE)
    kept_N = tl.zeros([N], COMPUTE)
    for p0 in range(0, num_channels, P):
        own, count = head * num_channels + p0, num_channels - p0
        grad_LP = load(grad_ptr, grad_stride, rows, inside, own, count, P)
        x_SP = load(x_ptr, x_stride, rows, inside, own, count, P)
        written_SP = x_SP.to(COMPUTE) * dt_L[:, None]
        before_PN = load_state(states_ptr, num_channels, num_states, p0, n0, P, N)
        after_PN = load_state(grads_ptr, num_channels, num_states, p0, n0, P, N)
        pairs_LS += dot(grad_LP, tl.trans(written_SP), FACTOR, PRECISION, COMPUTE)
        asked_LN += dot(grad_LP, before_PN, FACTOR, PRECISION, COMPUTE)
        given_SN += dot(written_SP, after_PN, FACTOR, PRECISION, COMPUTE)
        kept_N += tl.sum(before_PN.to(COMPUTE) * after_PN.to(COMPUTE), 0)
    return pairs_LS, asked_LN, given_SN, tl.sum(kept_N, 0)
