"""One token of Mamba in one call of C++, which writes over the states that it is handed.

Legend: B batch, I projected values, E channels, X shared channels, N state size, K taps of the
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


def mamba1_step_compiled(  # noqa: PLR0913  a layer has this many parameters
    projected_BI: Tensor,
    dt_BE: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor | None,
    dt_bias_E: Tensor | None,
    A_log_EN: Tensor,
    D_E: Tensor,
    *,
    block: int,
    segments_B: Tensor | None = None,
    conv_state_BEW: Tensor | None = None,
    scan_state_BEN: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `hybridize.ops.mamba1_step.mamba1_step`; outputs at padding are 0.

    States are written over where `native.take` does not copy them.
    """
    given = projected_BI.dtype
    dtype = get_compute_dtype(given)
    num_rows, (inner, num_states), num_taps = len(projected_BI), A_log_EN.shape, len(weight_EK[0])
    if conv_state_BEW is None:
        conv_state_BEW = projected_BI.new_zeros(num_rows, inner, num_taps - 1)
    if scan_state_BEN is None:
        scan_state_BEN = projected_BI.new_zeros(num_rows, inner, num_states, dtype=dtype)
    projected_BI = native.lay_out(projected_BI, dtype)
    conv_BEW = native.take(conv_state_BEW, dtype)
    scan_BEN = native.take(scan_state_BEN, dtype)
    y_BE = projected_BI.new_empty(num_rows, inner)
    native.call(
        KERNEL,
        "step",
        dtype,
        *(num_rows, inner, projected_BI.shape[1] // 2 - inner, block, num_states, num_taps),
        *(torch.get_num_threads(), projected_BI, projected_BI.stride(0)),
        *(native.fit(values, dtype) for values in (dt_BE, weight_EK)),
        *(None if bias is None else native.fit(bias, dtype) for bias in (bias_E, dt_bias_E)),
        *(native.fit(values, dtype) for values in (A_log_EN, D_E)),
        None if segments_B is None else segments_B.long().contiguous(),
        *(conv_BEW, scan_BEN, y_BE),
    )
    if given == dtype:
        return y_BE, conv_BEW, scan_BEN
    return y_BE.to(given), conv_BEW.to(given), scan_BEN
