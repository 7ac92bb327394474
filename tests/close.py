"""One way to compare tensors: the error measured and the error allowed are both shown."""

from torch import Tensor


def assert_close(found: Tensor, wanted: Tensor, allowed: float) -> None:
    """Compare by the largest difference, relative to the root mean square of what is wanted."""
    assert found.shape == wanted.shape, f"shapes {tuple(found.shape)} and {tuple(wanted.shape)}"
    if wanted.numel() == 0:
        return
    scale = wanted.double().square().mean().sqrt().clamp(min=1e-12)
    error = ((found.double() - wanted.double()).abs().max() / scale).item()
    assert error <= allowed, f"relative error {error:.3g}, allowed {allowed:.3g}"
