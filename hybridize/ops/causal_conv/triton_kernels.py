"""Kernels of the causal convolution: a tile of tokens and channels per program.

Legend: W kept inputs (kernel width - 1), taps 0..W from the oldest input to the token's own. Rows
of x, y and their gradients are tokens; a lag is the distance of an input from the token that
reads it.
"""

import triton
import triton.language as tl


@triton.jit
def forward(
    x_ptr, weight_ptr, bias_ptr, state_ptr, source_ptr, y_ptr,
    num_tokens, num_channels, x_stride,
    W: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Add up the taps; `source` says where each lag finds its input, -W..-1 being the state."""
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(2).to(tl.int64)
    is_token, is_channel = t < num_tokens, d < num_channels
    y = tl.zeros([TOKENS, CHANNELS], COMPUTE)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + d, mask=is_channel, other=0).to(COMPUTE)[None, :]
    for lag in tl.static_range(W + 1):
        source = t - lag
        if source_ptr is not None:
            place = (row * num_tokens + t) * (W + 1) + lag
            source = tl.load(source_ptr + place, mask=is_token, other=-W - 1)
        weight = tl.load(weight_ptr + d * (W + 1) + W - lag, mask=is_channel, other=0)
        found = (is_token & (source >= 0))[:, None] & is_channel[None, :]
        place = (row * num_tokens + source) * x_stride
        taken = tl.load(x_ptr + place[:, None] + d[None, :], mask=found, other=0).to(COMPUTE)
        if state_ptr is not None and lag > 0:
            found = (is_token & (source < 0) & (source >= -W))[:, None] & is_channel[None, :]
            place = (row * num_channels + d[None, :]) * W + W + source[:, None]
            taken += tl.load(state_ptr + place, mask=found, other=0).to(COMPUTE)
        y += taken * weight.to(COMPUTE)[None, :]
    place = (row * num_tokens + t)[:, None] * num_channels + d[None, :]
    tl.store(y_ptr + place, y, mask=is_token[:, None] & is_channel[None, :])


@triton.jit
def backward(
    x_ptr, weight_ptr, grad_ptr, target_ptr, grad_x_ptr, partial_ptr,
    num_tokens, num_channels, x_stride, grad_stride,
    W: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Return the gradient of x, and of taps and bias a sum per tile, to be added up in order.

    `target` says which token reads the input at each lag; T or more is none.
    """
    tile = tl.program_id(0)
    t = tile * TOKENS + tl.arange(0, TOKENS)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(2).to(tl.int64)
    is_token, is_channel = t < num_tokens, d < num_channels
    inside = is_token[:, None] & is_channel[None, :]
    place = (row * num_tokens + t) * x_stride
    x = tl.load(x_ptr + place[:, None] + d[None, :], mask=inside, other=0).to(COMPUTE)
    grad_x = tl.zeros([TOKENS, CHANNELS], COMPUTE)
    partial_ptr += (row * tl.num_programs(0) + tile) * (W + 2) * num_channels
    for lag in tl.static_range(W + 1):
        target = t + lag
        if target_ptr is not None:
            place = (row * num_tokens + t) * (W + 1) + lag
            target = tl.load(target_ptr + place, mask=is_token, other=num_tokens)
        found = (is_token & (target < num_tokens))[:, None] & is_channel[None, :]
        place = (row * num_tokens + target) * grad_stride
        grad = tl.load(grad_ptr + place[:, None] + d[None, :], mask=found, other=0).to(COMPUTE)
        weight = tl.load(weight_ptr + d * (W + 1) + W - lag, mask=is_channel, other=0)
        grad_x += grad * weight.to(COMPUTE)[None, :]
        of_tap = tl.sum(tl.where(found, x * grad, 0.0), 0)
        tl.store(partial_ptr + (W - lag) * num_channels + d, of_tap, mask=is_channel)
        if lag == 0:
            of_bias = tl.sum(grad, 0)
            tl.store(partial_ptr + (W + 1) * num_channels + d, of_bias, mask=is_channel)
    place = (row * num_tokens + t)[:, None] * num_channels + d[None, :]
    tl.store(grad_x_ptr + place, grad_x, mask=inside)
