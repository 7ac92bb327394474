"""Calibrate placeholder."""


def calibrate() -> None:
    """Wait."""
