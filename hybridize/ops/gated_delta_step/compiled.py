"""One token of Gated DeltaNet in one call of C++, which writes over the states it is handed.

Legend: B batch, H heads of values, P channels per head, G groups of heads that share queries and
keys, E = H P inner width, X = 2 G P + E convolved channels, K taps of the convolution, W = K - 1
kept inputs.
"""

from pathlib import Path

import torch
from torch import Tensor

from hybridize.ops import native
from hybridize.ops.segments import get_compute_dtype

KERNEL = Path(__file__).with_name("kernel.cpp")


def find_obstacle(device: torch.device) -> str | None:
    """Say why this form cannot run on the device, or return None."""
    return native.find_obstacle(KERNEL, device)


def gated_delta_step_compiled(  # noqa: PLR0913  a layer has this many parameters
    qkv_BX: Tensor,
    z_BE: Tensor,
    b_BH: Tensor,
    a_BH: Tensor,
    weight_XK: Tensor,
    bias_X: Tensor | None,
    dt_bias_H: Tensor,
    A_log_H: Tensor,
    norm_P: Tensor,
    *,
    eps: float,
    length_eps: float,
    segments_B: Tensor | None = None,
    conv_state_BXW: Tensor | None = None,
    delta_state_BHPN: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `hybridize.ops.gated_delta_step.gated_delta_step`; outputs at padding are 0.

    States are written over under the conditions that `native.take` names.
    """
    given = qkv_BX.dtype
    dtype = get_compute_dtype(given)
    (num_rows, num_convolved), num_heads, num_taps = qkv_BX.shape, len(dt_bias_H), len(weight_XK[0])
    head_dim = len(norm_P)
    num_groups = (num_convolved // head_dim - num_heads) // 2
    if conv_state_BXW is None:
        conv_state_BXW = qkv_BX.new_zeros(num_rows, num_convolved, num_taps - 1)
    if delta_state_BHPN is None:
        delta_state_BHPN = qkv_BX.new_zeros(num_rows, num_heads, head_dim, head_dim, dtype=dtype)
    conv_BXW = native.take(conv_state_BXW, dtype)
    delta_BHPN = native.take(delta_state_BHPN, dtype)
    y_BE = torch.empty_like(z_BE, dtype=dtype, memory_format=torch.contiguous_format)
    native.call(
        KERNEL,
        "step",
        dtype,
        *(num_rows, num_heads, head_dim, num_groups, num_taps, torch.get_num_threads()),
        *(eps, length_eps),
        *(native.fit(values, dtype) for values in (qkv_BX, z_BE, b_BH, a_BH, weight_XK)),
        None if bias_X is None else native.fit(bias_X, dtype),
        *(native.fit(values, dtype) for values in (dt_bias_H, A_log_H, norm_P)),
        None if segments_B is None else segments_B.long().contiguous(),
        *(conv_BXW, delta_BHPN, y_BE),
    )
    if given == dtype:
        return y_BE, conv_BXW, delta_BHPN
    return y_BE.to(given), conv_BXW.to(given), delta_BHPN
