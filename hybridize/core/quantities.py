"""Quantities as people write them: "300M" tokens, "2%" of a budget, "5GiB"; parsed and printed."""

import re
from decimal import Decimal
from fractions import Fraction

from hybridize.core.errors import RecipeError

_THOUSANDS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_NUMBER = re.compile(r"\s*(\d[\d_]*(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_tokens(value: str | int) -> int:
    """Read a number of tokens: an int, or text with the suffix k, M, B or T.

    Raises:
        RecipeError: not a number, negative, an unknown suffix, or not a whole number of tokens.
    """
    return _parse(value, _THOUSANDS, "tokens", "300M")


def format_tokens(tokens: int) -> str:
    """Print a number of tokens with the largest suffix that stays exact to three decimals."""
    return _format(tokens, _THOUSANDS)


def parse_bytes(value: str | int) -> int:
    """Read a number of bytes: an int, or text with the suffix B, KiB, MiB, GiB or TiB.

    Raises:
        RecipeError: not a number, negative, an unknown suffix, or not a whole number of bytes.
    """
    return _parse(value, _BYTES, "bytes", "5GiB")


def format_bytes(num_bytes: int) -> str:
    """Print a number of bytes with the largest binary suffix that stays exact to three decimals."""
    return _format(num_bytes, _BYTES)


def parse_share(value: str | float) -> float:
    """Read a share of a whole, 0..1: "2%" or 0.02.

    Raises:
        RecipeError: not a number, or outside 0..100%.
    """
    text = str(value).strip()
    try:
        share = float(Fraction(text[:-1].strip()) / 100) if text[-1:] == "%" else float(text)
    except (ValueError, ZeroDivisionError) as error:
        raise RecipeError(f"{value!r} is not a share; write it like 2% or 0.02") from error
    if isinstance(value, bool) or not 0 <= share <= 1:
        raise RecipeError(f"{value!r} is not a share between 0% and 100%; write it like 2% or 0.02")
    return share


def format_share(share: float) -> str:
    """Print a share (0..1) in percent, exactly enough to be read back."""
    for digits in range(1, 18):
        text = f"{share * 100:.{digits}g}%"
        if "e" not in text and parse_share(text) == share:
            return text
    return repr(share)


def short_count(count: float) -> str:
    """Print a count for people, three significant digits: 1_235_814_400 is "1.24B"."""
    return _short(count, _THOUSANDS, 1000)


def short_bytes(num_bytes: float) -> str:
    """Print a size for people, three significant digits: 66_678_000_000 is "62.1 GiB"."""
    return _short(num_bytes, _BYTES, 1024, space=" ")


def short_flops(flops_per_second: float) -> str:
    """Print a speed of computing for people: "120 GFLOP/s"."""
    number = short_count(flops_per_second)
    suffix = number.lstrip("0123456789.")
    unit = "G" if suffix == "B" else suffix
    return f"{number.removesuffix(suffix)} {unit}FLOP/s"


def short_seconds(seconds: float) -> str:
    """Print a duration for people: "0.4 s", "36 s", "12 m", "8.1 h", "3.2 d"."""
    for unit, length, until in (("s", 1, 100), ("m", 60, 100), ("h", 3600, 48)):
        if seconds < until * length:
            return f"{_three_digits(seconds / length)} {unit}"
    return f"{_three_digits(seconds / 86_400)} d"


def _parse(value: str | int, suffixes: dict[str, int], unit: str, example: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    if match is None or (match[2] and match[2] not in suffixes):
        known = ", ".join(suffix for suffix in suffixes if suffix)
        raise RecipeError(
            f"{value!r} is not a number of {unit}; write it like {example} (suffixes: {known})"
        )
    amount = Decimal(match[1].replace("_", "")) * suffixes.get(match[2], 1)
    if amount != int(amount):
        raise RecipeError(f"{value!r} is not a whole number of {unit}")
    return int(amount)


def _format(amount: int, suffixes: dict[str, int]) -> str:
    for suffix, size in reversed(suffixes.items()):
        if amount >= size and amount * 1000 % size == 0:
            return f"{(Decimal(amount) / size).normalize():f}{suffix}"
    return f"{amount}{next(iter(suffixes))}"


def _short(amount: float, suffixes: dict[str, int], base: int, space: str = "") -> str:
    chosen = next(iter(suffixes))
    for suffix, size in suffixes.items():
        if amount >= size * (0.9995 if base == 1000 else 1):
            chosen = suffix
    number = amount / suffixes[chosen]
    return f"{_three_digits(number)}{space}{chosen}".strip()


def _three_digits(number: float) -> str:
    if number >= 99.95 or number == int(number):
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 9.995 else f"{number:.2f}".rstrip("0").rstrip(".")
