"""Kernels of the gradients of the gated delta rule.

Legend: as in `triton_kernels`. What a change should have been times beta is called missing; its
gradient is what the changes' gradient becomes when it is taken back through (I + A)^-1.
"""

import triton
import triton.language as tl

from hybridize.ops.gated_delta_rule.triton_kernels import get_rates
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
def pull(
    q_ptr, k_ptr, g_ptr, mark_ptr, grad_ptr, pulled_ptr,
    num_tokens, num_heads, num_channels, num_states, per_group,
    q_stride, k_stride, g_stride, grad_stride,
    CHUNK: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write what the outputs of one chunk ask of its changes."""
    num_chunks = tl.cdiv(num_tokens, CHUNK)
    k, p0 = tl.program_id(0) % num_chunks, (tl.program_id(0) // num_chunks) * P
    head, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    t, p = k * CHUNK + tl.arange(0, CHUNK), p0 + tl.arange(0, P)
    rows, inside = row * num_tokens + t, t < num_tokens
    scores_LS = tl.zeros([CHUNK, CHUNK], COMPUTE)
    for n0 in range(0, num_states, N):
        first, count = (head // per_group) * num_states + n0, num_states - n0
        q_LN = load(q_ptr, q_stride, rows, inside, first, count, N)
        k_SN = load(k_ptr, k_stride, rows, inside, first, count, N)
        scores_LS += dot(q_LN, tl.trans(k_SN), FACTOR, PRECISION, COMPUTE)
    _, log_L = get_steps(g_ptr, 1.0, mark_ptr, rows, inside, g_stride, head, COMPUTE)
    scores_LS *= get_within(log_L, mark_ptr, row, k * CHUNK, num_tokens, CHUNK)
    own, count = head * num_channels + p0, num_channels - p0
    grad_LP = load(grad_ptr, grad_stride, rows, inside, own, count, P)
    pulled_SP = dot(tl.trans(scores_LS), grad_LP, FACTOR, PRECISION, COMPUTE)
    place = (rows[:, None] * num_heads + head) * num_channels + p[None, :]
    tl.store(pulled_ptr + place, pulled_SP, mask=inside[:, None] & (p < num_channels)[None, :])


@triton.jit
def carry_back(
    q_ptr, k_ptr, g_ptr, beta_ptr, mark_ptr, inverse_ptr, grad_ptr, pulled_ptr, grad_last_ptr,
    grads_ptr, grad_missing_ptr, grad_v_ptr, grad_state_ptr,
    num_tokens, num_heads, num_channels, num_states, per_group,
    q_stride, k_stride, g_stride, beta_stride, grad_stride,
    CHUNK: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradients of v, of what is missing, of the state after each chunk and before the
    first; N holds whole keys."""
    p0, head, row = tl.program_id(0) * P, tl.program_id(1), tl.program_id(2).to(tl.int64)
    i, p, n = tl.arange(0, CHUNK), p0 + tl.arange(0, P), tl.arange(0, N)
    inside_PN = (p < num_channels)[:, None] & (n < num_states)[None, :]
    place_PN = p[:, None] * num_states + n[None, :]
    at = (row * num_heads + head) * num_channels * num_states
    after_PN = tl.load(grad_last_ptr + at + place_PN, mask=inside_PN, other=0).to(COMPUTE)
    num_chunks = tl.cdiv(num_tokens, CHUNK)
    for step in range(num_chunks):
        k = num_chunks - 1 - step
        chunk = (row * num_chunks + k) * num_heads + head
        tl.store(grads_ptr + chunk * num_channels * num_states + place_PN, after_PN, mask=inside_PN)
        rows, inside = row * num_tokens + k * CHUNK + i, k * CHUNK + i < num_tokens
        first, own = (head // per_group) * num_states, head * num_channels + p0
        q_LN = load(q_ptr, q_stride, rows, inside, first, num_states, N).to(COMPUTE)
        k_LN = load(k_ptr, k_stride, rows, inside, first, num_states, N).to(COMPUTE)
        grad_LP = load(grad_ptr, grad_stride, rows, inside, own, num_channels - p0, P)
        width = num_heads * num_channels
        pulled_LP = load(pulled_ptr, width, rows, inside, own, num_channels - p0, P).to(COMPUTE)
        g_L, log_L = get_steps(g_ptr, 1.0, mark_ptr, rows, inside, g_stride, head, COMPUTE)
        beta_L = get_rates(beta_ptr, mark_ptr, rows, inside, beta_stride, head, COMPUTE)
        read_L, write_L, keep = get_decays(
            g_L, log_L, 1.0, mark_ptr, row, k * CHUNK, num_tokens, CHUNK
        )
        inverse_LS = tl.load(inverse_ptr + chunk * CHUNK * CHUNK + i[:, None] * CHUNK + i[None, :])
        written_LN = k_LN * write_L[:, None]
        pulled_LP += dot(written_LN, tl.trans(after_PN), FACTOR, PRECISION, COMPUTE)
        missing_LP = dot(tl.trans(inverse_LS), pulled_LP, FACTOR, PRECISION, COMPUTE)
        place_LP = (rows[:, None] * num_heads + head) * num_channels + p[None, :]
        inside_LP = inside[:, None] & (p < num_channels)[None, :]
        tl.store(grad_missing_ptr + place_LP, missing_LP, mask=inside_LP)
        missing_LP *= beta_L[:, None]
        tl.store(grad_v_ptr + place_LP, missing_LP, mask=inside_LP)
        asked_LN, held_LN = q_LN * read_L[:, None], k_LN * read_L[:, None]
        after_PN = keep * after_PN
        after_PN += dot(tl.trans(grad_LP), asked_LN, FACTOR, PRECISION, COMPUTE)
        after_PN -= dot(tl.trans(missing_LP), held_LN, FACTOR, PRECISION, COMPUTE)
    tl.store(grad_state_ptr + at + place_PN, after_PN, mask=inside_PN)


@triton.jit
def write_keys(
    q_ptr, k_ptr, v_ptr, g_ptr, beta_ptr, mark_ptr, grad_ptr, changes_ptr, missing_ptr,
    states_ptr, grads_ptr, grad_q_ptr, grad_k_ptr, grad_g_ptr, grad_beta_ptr,
    num_tokens, num_heads, num_channels, num_states, per_group,
    q_stride, k_stride, v_stride, g_stride, beta_stride, grad_stride,
    CHUNK: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradients of q and k, of all heads of a group, and by block of N of g and beta."""
    num_chunks = tl.cdiv(num_tokens, CHUNK)
    k, block = tl.program_id(0) % num_chunks, tl.program_id(0) // num_chunks
    group, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    n0, i = block * N, tl.arange(0, CHUNK)
    n = n0 + tl.arange(0, N)
    rows, inside = row * num_tokens + k * CHUNK + i, k * CHUNK + i < num_tokens
    first, count = group * num_states + n0, num_states - n0
    q_LN = load(q_ptr, q_stride, rows, inside, first, count, N)
    k_LN = load(k_ptr, k_stride, rows, inside, first, count, N)
    grad_q_LN, grad_k_LN = tl.zeros([CHUNK, N], COMPUTE), tl.zeros([CHUNK, N], COMPUTE)
    for h in range(per_group):
        head = group * per_group + h
        g_L, log_L = get_steps(g_ptr, 1.0, mark_ptr, rows, inside, g_stride, head, COMPUTE)
        beta_L = get_rates(beta_ptr, mark_ptr, rows, inside, beta_stride, head, COMPUTE)
        read_L, write_L, keep = get_decays(
            g_L, log_L, 1.0, mark_ptr, row, k * CHUNK, num_tokens, CHUNK
        )
        at = ((row * num_chunks + k) * num_heads + head) * num_channels * num_states
        read_LS, solved_LS, asked_LN, held_LN, given_LN, wanted_L, kept = _meet_states(
            v_ptr, grad_ptr, changes_ptr, missing_ptr, states_ptr + at, grads_ptr + at,
            rows, inside, head, n0, num_heads, num_channels, num_states, v_stride, grad_stride,
            CHUNK, P, N, COMPUTE, FACTOR, PRECISION,
        )  # fmt: skip
        within_LS = get_within(log_L, mark_ptr, row, k * CHUNK, num_tokens, CHUNK)
        read_LS *= within_LS
        solved_LS = tl.where(i[:, None] > i[None, :], -solved_LS * within_LS, 0.0)
        asked_LN *= read_L[:, None]
        held_LN *= -read_L[:, None]
        given_LN *= write_L[:, None]
        grad_q_LN += asked_LN + dot(read_LS, k_LN, FACTOR, PRECISION, COMPUTE)
        grad_k_LN += given_LN + dot(tl.trans(read_LS), q_LN, FACTOR, PRECISION, COMPUTE)
        alike_LS = dot(k_LN, tl.trans(k_LN), FACTOR, PRECISION, COMPUTE) * solved_LS
        held_L = tl.sum(k_LN.to(COMPUTE) * held_LN, 1)
        grad_beta_L = held_L + tl.sum(alike_LS, 1) + tl.where(block == 0, wanted_L, 0.0)
        solved_LS *= beta_L[:, None]
        grad_k_LN += held_LN * beta_L[:, None] + dot(solved_LS, k_LN, FACTOR, PRECISION, COMPUTE)
        grad_k_LN += dot(tl.trans(solved_LS), k_LN, FACTOR, PRECISION, COMPUTE)
        scores_LS = dot(q_LN, tl.trans(k_LN), FACTOR, PRECISION, COMPUTE)
        grad_g_L = kept * keep + count_crossings(
            read_LS * scores_LS + alike_LS * beta_L[:, None],
            tl.sum(q_LN.to(COMPUTE) * asked_LN, 1) + held_L * beta_L,
            tl.sum(k_LN.to(COMPUTE) * given_LN, 1),
            CHUNK,
        )
        at = (block * tl.num_programs(2) * num_tokens + rows) * num_heads + head
        tl.store(grad_g_ptr + at, grad_g_L, mask=inside)
        tl.store(grad_beta_ptr + at, grad_beta_L, mask=inside)
    place = (rows[:, None] * tl.num_programs(1) + group) * num_states + n[None, :]
    inside_LN = inside[:, None] & (n < num_states)[None, :]
    tl.store(grad_q_ptr + place, grad_q_LN, mask=inside_LN)
    tl.store(grad_k_ptr + place, grad_k_LN, mask=inside_LN)


@triton.jit
def _meet_states(
    v_ptr, grad_ptr, changes_ptr, missing_ptr, states_ptr, grads_ptr,
    rows, inside, head, n0, num_heads, num_channels, num_states, v_stride, grad_stride,
    CHUNK: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return, summed over channels, the gradients of outputs and of what is missing times changes
    (L, S), both times the state before and the changes times the gradient of the state after
    (L, N), the gradient of what is missing times values (L), and both states' product."""
    read_LS = tl.zeros([CHUNK, CHUNK], COMPUTE)
    solved_LS = tl.zeros([CHUNK, CHUNK], COMPUTE)
    asked_LN = tl.zeros([CHUNK, N], COMPUTE)
    held_LN = tl.zeros([CHUNK, N], COMPUTE)
    given_LN = tl.zeros([CHUNK, N], COMPUTE)
    wanted_L = tl.zeros([CHUNK], COMPUTE)
    kept_N = tl.zeros([N], COMPUTE)
    width = num_heads * num_channels
    for p0 in range(0, num_channels, P):
        own, count = head * num_channels + p0, num_channels - p0
        v_LP = load(v_ptr, v_stride, rows, inside, own, count, P).to(COMPUTE)
        grad_LP = load(grad_ptr, grad_stride, rows, inside, own, count, P)
        changes_LP = load(changes_ptr, width, rows, inside, own, count, P)
        missing_LP = load(missing_ptr, width, rows, inside, own, count, P)
        before_PN = load_state(states_ptr, num_channels, num_states, p0, n0, P, N)
        after_PN = load_state(grads_ptr, num_channels, num_states, p0, n0, P, N)
        read_LS += dot(grad_LP, tl.trans(changes_LP), FACTOR, PRECISION, COMPUTE)
        solved_LS += dot(missing_LP, tl.trans(changes_LP), FACTOR, PRECISION, COMPUTE)
        asked_LN += dot(grad_LP, before_PN, FACTOR, PRECISION, COMPUTE)
        held_LN += dot(missing_LP, before_PN, FACTOR, PRECISION, COMPUTE)
        given_LN += dot(changes_LP, after_PN, FACTOR, PRECISION, COMPUTE)
        wanted_L += tl.sum(missing_LP.to(COMPUTE) * v_LP, 1)
        kept_N += tl.sum(before_PN.to(COMPUTE) * after_PN.to(COMPUTE), 0)
    return read_LS, solved_LS, asked_LN, held_LN, given_LN, wanted_L, tl.sum(kept_N, 0)
