"""What the Triton forms share: where Triton can run, and how tensors are handed to its kernels.

Legend: B batch, T tokens, R rows of numbers (B T), X whatever one token holds.

Kernels live in files that import Triton at their top; those files are imported by the function that
launches them, so that nothing here needs Triton to be installed.
"""

from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from hybridize.ops.forms import get_kind
from hybridize.ops.segments import find_starts


def find_obstacle(device: torch.device) -> str | None:
    """Say why Triton cannot run kernels on this device, or return None."""
    if find_spec("triton") is None:
        return "the package triton is not installed: pip install 'hybridize[triton]'"
    import triton

    if triton.knobs.runtime.interpret:
        return None
    if get_kind(device) != "gpu":
        return "Triton needs a GPU, or TRITON_INTERPRET=1 set before Python starts (slow, to check)"
    try:
        found = triton.runtime.driver.active.get_active_torch_device()
    except RuntimeError as error:
        return f"Triton found no driver ({error})"
    return None if found.type == device.type else f"Triton has no back end for {device.type}"


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the device of the tensor the current one, on which kernels are launched."""
    if tensor.device.type == "cpu":
        return nullcontext()
    return torch.accelerator.device_index(tensor.device.index)


def flatten_rows(values_BTX: Tensor) -> Tensor:
    """Return the numbers of each token as a row (R, X), without a copy where strides allow it."""
    values_RX = values_BTX.reshape(values_BTX.shape[0] * values_BTX.shape[1], -1)
    return values_RX if values_RX.stride(1) == 1 else values_RX.contiguous()


def get_compute_type(dtype: torch.dtype) -> Any:
    """Return Triton's name of the precision of sums, decays and states."""
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def get_product_type(dtype: torch.dtype) -> tuple[Any, str]:
    """Return the type of the factors of matrix products, and the precision of the products.

    bfloat16 stays what it is. float16 becomes tf32, whose mantissa is as long, because a state or a
    scaled gradient may exceed its range. float32 is multiplied as float32. The interpreter knows
    no bfloat16.
    """
    import triton
    import triton.language as tl

    if dtype == torch.bfloat16 and not triton.knobs.runtime.interpret:
        return tl.bfloat16, "ieee"
    return get_compute_type(dtype), "tf32" if dtype == torch.float16 else "ieee"


def get_factor_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which factors of products that are made once are kept."""
    import triton

    if dtype == torch.bfloat16 and not triton.knobs.runtime.interpret:
        return torch.bfloat16
    return torch.promote_types(dtype, torch.float32)


def mark_documents(segments_BT: Tensor) -> Tensor:
    """Give each token twice the documents begun before it in its row, plus 1 at padding."""
    document_BT = find_starts(segments_BT).long().cumsum(dim=1)
    return (2 * document_BT + (segments_BT == 0)).int()


def round_up(count: int, least: int = 1) -> int:
    """Return the smallest power of two that is no less than either number."""
    return max(least, 1 << max(count - 1, 0).bit_length())
