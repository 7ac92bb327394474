"""Quantities are read as people write them, exactly, and printed so that they read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridize.core.errors import RecipeError
from hybridize.core.quantities import (
    format_bytes,
    format_share,
    format_tokens,
    parse_bytes,
    parse_share,
    parse_tokens,
    short_bytes,
    short_count,
    short_seconds,
)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("300M", 300_000_000), ("1.5k", 1500), ("512_000", 512_000), (7, 7), ("2T", 2 * 10**12)],
)
def test_tokens_are_read_with_their_suffix(text, tokens):
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["300X", "-3", "", "1.0001k", True, None, 1.5, -1, "M", "1e4"])
def test_what_is_no_number_of_tokens_is_refused(text):
    with pytest.raises(RecipeError, match="tokens"):
        parse_tokens(text)


@pytest.mark.parametrize("text", ["101%", "2", "-1%", "x%", True, "1/0%"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(RecipeError, match="share"):
        parse_share(text)


def test_a_percentage_and_its_number_are_the_same_share():
    assert parse_share("2%") == parse_share(0.02) == parse_share("0.02") == 0.02


@given(st.integers(0, 10**15))
def test_tokens_round_trip(tokens):
    assert parse_tokens(format_tokens(tokens)) == tokens


@given(st.integers(0, 2**50))
def test_bytes_round_trip(num_bytes):
    assert parse_bytes(format_bytes(num_bytes)) == num_bytes


@given(st.floats(0, 1))
def test_shares_round_trip(share):
    assert parse_share(format_share(share)) == share


def test_printed_forms_are_short():
    assert [format_tokens(n) for n in (300_000_000, 512_000, 1_234_567)] == [
        "300M",
        "512k",
        "1234.567k",
    ]
    assert format_bytes(5 * 2**30) == "5GiB"
    assert [format_share(s) for s in (0.02, 0.125)] == ["2%", "12.5%"]
    assert [short_count(n) for n in (1_235_814_400, 999_999, 12, 0)] == ["1.24B", "1M", "12", "0"]
    assert short_bytes(66_678_000_000) == "62.1 GiB"
    assert [short_seconds(s) for s in (0.4, 720, 3600 * 8.1, 86_400 * 3.2)] == [
        "0.4 s",
        "12 m",
        "8.1 h",
        "3.2 d",
    ]
