"""Kernels of the selective scan: a program carries the states of a few channels along a row.

Legend: T tokens, D channels of one program, N states per channel, G groups of channels that share B
and C, K tiles of tokens; the letters of a tile are the order of its axes.

A program walks over tiles of tokens. Inside a tile the recurrence is an associative scan over
(decay, write), so that a tile is loaded and computed at once; between tiles the states stay in
registers. The backward pass walks from the last tile to the first and makes the states of a tile
again from those at its border.
"""

import triton
import triton.language as tl


@triton.jit
def _combine(decay_a, write_a, decay_b, write_b):
    return decay_a * decay_b, write_a * decay_b + write_b


@triton.jit
def _find_channels(per_group, CHANNELS: tl.constexpr):
    """Return the group, the channels (D,) of this program, and which of them exist."""
    blocks = tl.cdiv(per_group, CHANNELS)
    group = tl.program_id(0) // blocks
    c = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    return group, group * per_group + c, c < per_group


@triton.jit
def _load_tile(ptr, stride, row, t, columns, num_tokens, is_column, COMPUTE: tl.constexpr):
    """Load one tile (T, columns), zeros beyond the row."""
    mask = (t < num_tokens)[:, None] & is_column[None, :]
    place = (row * num_tokens + t)[:, None] * stride + columns[None, :]
    return tl.load(ptr + place, mask=mask, other=0).to(COMPUTE)


@triton.jit
def _load_decay(
    dt_ptr, mark_ptr, A_DN, dt_stride, row, t, d, num_tokens, is_channel, COMPUTE: tl.constexpr
):
    """Return step sizes (T, D) and decays (T, D, N): none at padding, all at a start."""
    dt_TD = _load_tile(dt_ptr, dt_stride, row, t, d, num_tokens, is_channel, COMPUTE)
    if mark_ptr is not None:
        mark_T = tl.load(mark_ptr + row * num_tokens + t, mask=t < num_tokens, other=0)
        dt_TD = tl.where((mark_T == 2)[:, None], 0.0, dt_TD)
    decay_TDN = tl.exp(dt_TD[:, :, None] * A_DN[None, :, :])
    if mark_ptr is not None:
        decay_TDN = tl.where((mark_T == 1)[:, None, None], 0.0, decay_TDN)
    return dt_TD, decay_TDN


@triton.jit
def _pick(values_TDN, index, TOKENS: tl.constexpr):
    """Return one token of a tile, (D, N)."""
    is_it_T = tl.arange(0, TOKENS) == index
    return tl.sum(tl.where(is_it_T[:, None, None], values_TDN, 0.0), 0)


@triton.jit
def forward(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, mark_ptr, state_ptr, y_ptr, last_ptr, border_ptr,
    num_tokens, num_channels, per_group, num_states, x_stride, dt_stride, B_stride, C_stride,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Write outputs, the last state, and the states before each tile if a place is given."""
    group, d, is_channel = _find_channels(per_group, CHANNELS)
    row, n = tl.program_id(1).to(tl.int64), tl.arange(0, STATES)
    is_state = is_channel[:, None] & (n < num_states)[None, :]
    entry_DN = d[:, None] * num_states + n[None, :]
    own = row * num_channels * num_states
    A_DN = tl.load(A_ptr + entry_DN, mask=is_state, other=0).to(COMPUTE)
    state_DN = tl.zeros([CHANNELS, STATES], COMPUTE)
    if state_ptr is not None:
        state_DN = tl.load(state_ptr + own + entry_DN, mask=is_state, other=0).to(COMPUTE)
    num_tiles = tl.cdiv(num_tokens, TOKENS)
    for tile in range(num_tiles):
        t = tile * TOKENS + tl.arange(0, TOKENS)
        if border_ptr is not None:
            border = (row * num_tiles + tile) * num_channels * num_states
            tl.store(border_ptr + border + entry_DN, state_DN, mask=is_state)
        dt_TD, decay_TDN = _load_decay(
            dt_ptr, mark_ptr, A_DN, dt_stride, row, t, d, num_tokens, is_channel, COMPUTE
        )
        x_TD = _load_tile(x_ptr, x_stride, row, t, d, num_tokens, is_channel, COMPUTE)
        key = group * num_states + n
        B_TN = _load_tile(B_ptr, B_stride, row, t, key, num_tokens, n < num_states, COMPUTE)
        C_TN = _load_tile(C_ptr, C_stride, row, t, key, num_tokens, n < num_states, COMPUTE)
        write_TDN = (dt_TD * x_TD)[:, :, None] * B_TN[:, None, :]
        kept_TDN, state_TDN = tl.associative_scan((decay_TDN, write_TDN), 0, _combine)
        state_TDN += kept_TDN * state_DN[None, :, :]
        y_TD = tl.sum(state_TDN * C_TN[:, None, :], 2)
        if D_ptr is not None:
            y_TD += tl.load(D_ptr + d, mask=is_channel, other=0).to(COMPUTE)[None, :] * x_TD
        place = (row * num_tokens + t)[:, None] * num_channels + d[None, :]
        tl.store(y_ptr + place, y_TD, mask=(t < num_tokens)[:, None] & is_channel[None, :])
        state_DN = _pick(state_TDN, TOKENS - 1, TOKENS)
    tl.store(last_ptr + own + entry_DN, state_DN, mask=is_state)


@triton.jit
def backward(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, mark_ptr, border_ptr, grad_ptr, grad_last_ptr,
    grad_x_ptr, grad_dt_ptr, grad_A_ptr, grad_B_ptr, grad_C_ptr, grad_D_ptr, grad_state_ptr,
    num_tokens, num_channels, per_group, num_states,
    x_stride, dt_stride, B_stride, C_stride, grad_stride,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Write gradients: of A and D a sum per row, of B and C a sum per program, to be added up."""
    group, d, is_channel = _find_channels(per_group, CHANNELS)
    row, n = tl.program_id(1).to(tl.int64), tl.arange(0, STATES)
    is_state = is_channel[:, None] & (n < num_states)[None, :]
    entry_DN = d[:, None] * num_states + n[None, :]
    own = row * num_channels * num_states
    A_DN = tl.load(A_ptr + entry_DN, mask=is_state, other=0).to(COMPUTE)
    # The gradient of the state after the tile, as its first token hands it back.
    grad_DN = tl.load(grad_last_ptr + own + entry_DN, mask=is_state, other=0).to(COMPUTE)
    grad_A_DN, grad_D_D = tl.zeros([CHANNELS, STATES], COMPUTE), tl.zeros([CHANNELS], COMPUTE)
    num_tiles = tl.cdiv(num_tokens, TOKENS)
    for step in range(num_tiles):
        tile = num_tiles - 1 - step
        t = tile * TOKENS + tl.arange(0, TOKENS)
        border = (row * num_tiles + tile) * num_channels * num_states
        state_DN = tl.load(border_ptr + border + entry_DN, mask=is_state, other=0)
        dt_TD, x_TD, B_TN, grad_TD, faded_TDN, state_TDN, total_TDN, grad_DN = _run_tile(
            x_ptr, dt_ptr, B_ptr, C_ptr, mark_ptr, grad_ptr, A_DN, state_DN, grad_DN,
            x_stride, dt_stride, B_stride, C_stride, grad_stride,
            row, t, d, n, group, num_tokens, num_states, is_channel,
            TOKENS, COMPUTE,
        )  # fmt: skip
        grad_A_DN += tl.sum(total_TDN * faded_TDN * dt_TD[:, :, None], 0)
        grad_value_TD = tl.sum(total_TDN * B_TN[:, None, :], 2)
        grad_dt_TD = grad_value_TD * x_TD + tl.sum(total_TDN * faded_TDN * A_DN[None, :, :], 2)
        grad_x_TD = grad_value_TD * dt_TD
        if D_ptr is not None:
            D_D = tl.load(D_ptr + d, mask=is_channel, other=0).to(COMPUTE)
            grad_x_TD += D_D[None, :] * grad_TD
            grad_D_D += tl.sum(x_TD * grad_TD, 0)
        if mark_ptr is not None:
            mark_T = tl.load(mark_ptr + row * num_tokens + t, mask=t < num_tokens, other=0)
            grad_dt_TD = tl.where((mark_T == 2)[:, None], 0.0, grad_dt_TD)
        is_real = (t < num_tokens)[:, None] & is_channel[None, :]
        place = (row * num_tokens + t)[:, None] * num_channels + d[None, :]
        tl.store(grad_x_ptr + place, grad_x_TD, mask=is_real)
        tl.store(grad_dt_ptr + place, grad_dt_TD, mask=is_real)
        grad_B_TN = tl.sum(total_TDN * (dt_TD * x_TD)[:, :, None], 1)
        grad_C_TN = tl.sum(state_TDN * grad_TD[:, :, None], 1)
        key = tl.program_id(0) * num_states + n
        place = (row * num_tokens + t)[:, None] * tl.num_programs(0) * num_states + key[None, :]
        is_real = (t < num_tokens)[:, None] & (n < num_states)[None, :]
        tl.store(grad_B_ptr + place, grad_B_TN, mask=is_real)
        tl.store(grad_C_ptr + place, grad_C_TN, mask=is_real)
    tl.store(grad_A_ptr + own + entry_DN, grad_A_DN, mask=is_state)
    tl.store(grad_state_ptr + own + entry_DN, grad_DN, mask=is_state)
    if D_ptr is not None:
        tl.store(grad_D_ptr + row * num_channels + d, grad_D_D, mask=is_channel)


@triton.jit
def _run_tile(
    x_ptr, dt_ptr, B_ptr, C_ptr, mark_ptr, grad_ptr, A_DN, state_DN, grad_DN,
    x_stride, dt_stride, B_stride, C_stride, grad_stride,
    row, t, d, n, group, num_tokens, num_states, is_channel,
    TOKENS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Return the inputs of a tile but for C, what is left of the state before each token, the state
    after it, its gradient, and the gradient handed to the tile before."""
    dt_TD, decay_TDN = _load_decay(
        dt_ptr, mark_ptr, A_DN, dt_stride, row, t, d, num_tokens, is_channel, COMPUTE
    )
    x_TD = _load_tile(x_ptr, x_stride, row, t, d, num_tokens, is_channel, COMPUTE)
    key, is_key = group * num_states + n, n < num_states
    B_TN = _load_tile(B_ptr, B_stride, row, t, key, num_tokens, is_key, COMPUTE)
    C_TN = _load_tile(C_ptr, C_stride, row, t, key, num_tokens, is_key, COMPUTE)
    grad_TD = _load_tile(grad_ptr, grad_stride, row, t, d, num_tokens, is_channel, COMPUTE)
    write_TDN = (dt_TD * x_TD)[:, :, None] * B_TN[:, None, :]
    kept_TDN, state_TDN = tl.associative_scan((decay_TDN, write_TDN), 0, _combine)
    state_TDN += kept_TDN * state_DN[None, :, :]
    faded_TDN = state_TDN - write_TDN
    # Read backwards, a token's gradient fades by the decay of the token after it; the last token of
    # the tile takes what the tile after handed back, where that decay is already applied.
    _, next_TDN = _load_decay(
        dt_ptr, mark_ptr, A_DN, dt_stride, row, t + 1, d, num_tokens, is_channel, COMPUTE
    )
    is_last_T = tl.arange(0, TOKENS) == TOKENS - 1
    next_TDN = tl.where(is_last_T[:, None, None], 1.0, next_TDN)
    own_TDN = grad_TD[:, :, None] * C_TN[:, None, :]
    kept_TDN, total_TDN = tl.associative_scan((next_TDN, own_TDN), 0, _combine, reverse=True)
    total_TDN += kept_TDN * grad_DN[None, :, :]
    grad_DN = _pick(total_TDN, 0, TOKENS) * _pick(decay_TDN, 0, TOKENS)
    return dt_TD, x_TD, B_TN, grad_TD, faded_TDN, state_TDN, total_TDN, grad_DN
