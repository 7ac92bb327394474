"""One token of Mamba-2 in one call of C++, which writes over the states that it is handed.

Legend: B batch, I projected values, H heads, P channels per head, G groups of heads that share B
and C, N state size, E = H P inner width, X = E + 2 G N convolved channels, K taps of the
convolution, W = K - 1 kept inputs.
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


def mamba2_step_compiled(  # noqa: PLR0913  a layer has this many parameters
    projected_BI: Tensor,
    weight_XK: Tensor,
    bias_X: Tensor | None,
    dt_bias_H: Tensor,
    A_log_H: Tensor,
    D_H: Tensor,
    norm_E: Tensor,
    *,
    num_groups: int,
    eps: float,
    segments_B: Tensor | None = None,
    conv_state_BXW: Tensor | None = None,
    ssd_state_BHPN: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `hybridize.ops.mamba2_step.mamba2_step`; outputs at padding are 0.

    States are written over if they lie as the kernel wants them, in its precision and without
    gaps, and no gradient was to pass through them. Others are copied.
    """
    given = projected_BI.dtype
    dtype = get_compute_dtype(given)
    num_rows, num_heads = len(projected_BI), len(dt_bias_H)
    num_inner, (num_convolved, num_taps) = len(norm_E), weight_XK.shape
    head_dim, state_size = num_inner // num_heads, (num_convolved - num_inner) // (2 * num_groups)
    if conv_state_BXW is None:
        conv_state_BXW = projected_BI.new_zeros(num_rows, num_convolved, num_taps - 1)
    if ssd_state_BHPN is None:
        sizes = (num_rows, num_heads, head_dim, state_size)
        ssd_state_BHPN = projected_BI.new_zeros(sizes, dtype=dtype)
    projected_BI = native.lay_out(projected_BI, dtype)
    conv_BXW = native.take(conv_state_BXW, dtype)
    ssd_BHPN = native.take(ssd_state_BHPN, dtype)
    y_BE = projected_BI.new_empty(num_rows, num_inner)
    native.call(
        KERNEL,
        "step",
        dtype,
        *(num_rows, num_heads, head_dim, num_groups, state_size, num_taps),
        *(torch.get_num_threads(), eps, projected_BI, projected_BI.stride(0)),
        native.fit(weight_XK, dtype),
        None if bias_X is None else native.fit(bias_X, dtype),
        *(native.fit(values, dtype) for values in (dt_bias_H, A_log_H, D_H, norm_E)),
        None if segments_B is None else segments_B.long().contiguous(),
        *(conv_BXW, ssd_BHPN, y_BE),
    )
    if given == norm_E.dtype == dtype:
        return y_BE, conv_BXW, ssd_BHPN
    return y_BE.to(torch.promote_types(given, norm_E.dtype)), conv_BXW.to(given), ssd_BHPN
