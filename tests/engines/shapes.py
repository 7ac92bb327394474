"""A shape so small that its speed is that of Python."""

from hybridize.core.layout import Layout
from hybridize.core.shapes import find_shape

TINY = find_shape("2x32x4x2x64x64")


def layout(strip: str) -> Layout:
    return Layout.parse(strip)
