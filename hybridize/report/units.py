"""Numbers as text: three significant digits, and a unit wherever one exists."""

import math

from hybridize.core.quantities import short_bytes, short_count, short_seconds

MISSING = "\N{EN DASH}"


def three_digits(value: float) -> str:
    """Write a number with three significant digits: 0.912, 1.90, 1,230, 4.20e-05."""
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    rounded = float(f"{value:.2e}")
    exponent = math.floor(math.log10(abs(rounded)))
    if exponent < -4 or exponent > 8:
        return f"{value:.2e}"
    return f"{rounded:,.{max(0, 2 - exponent)}f}"


def tick_text(value: float) -> str:
    """Write a value of an axis as short as it can be: 0.5, 20, 1e-05."""
    return f"{value:,.10g}" if abs(value) < 1e6 else f"{value:.3g}"


def error_text(error: float, value: float) -> str:
    """Write a standard error with the decimals that `three_digits` gives its value."""
    text = three_digits(value)
    if "e" in text:
        return f"{error:.1e}"
    decimals = 3 if value == 0 else len(text.partition(".")[2])
    return f"{error:,.{min(decimals, 6)}f}"


def count_text(value: float) -> str:
    """Write a count exactly, with thousands separated: 1,024."""
    return f"{value:,.0f}"


def tokens_text(tokens: float) -> str:
    """Write tokens with a suffix and three significant digits: 300M, 12.3k, 76.8B."""
    return short_count(tokens)


def bytes_text(num_bytes: float) -> str:
    """Write bytes in binary units: 1.5 MiB."""
    return short_bytes(num_bytes)


def seconds_text(seconds: float) -> str:
    """Write a duration: 42 s, 12 m, 7.5 h."""
    return short_seconds(seconds)


def ratio_text(ratio: float) -> str:
    """Write a ratio with two decimals below ten and fewer above: 0.98, 1.90, 12.3."""
    return f"{ratio:.2f}" if abs(ratio) < 10 else three_digits(ratio)
