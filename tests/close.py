"""One way to compare tensors: the error measured and the error allowed are both shown."""

from torch import Tensor


def assert_close(found: Tensor, wanted: Tensor, allowed: float) -> None:
    """Compare by the root mean square of the difference, relative to that of what is wanted."""
    assert found.shape == wanted.shape, f"shapes {tuple(found.shape)} and {tuple(wanted.shape)}"
    if wanted.numel() == 0:
        return
    difference, scale = (found.double() - wanted.double()).norm(), wanted.double().norm()
    error = (difference / scale.clamp(min=1e-12)).item()
    assert error <= allowed, f"relative error {error:.3g}, allowed {allowed:.3g}"
