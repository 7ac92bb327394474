"""Shapes by name and by numbers, and layouts that spread what is kept."""

import pytest

from hybridize.core.errors import RecipeError
from hybridize.core.shape import ModelShape
from hybridize.core.shapes import SHAPES, find_shape, spread_layout


@pytest.mark.parametrize("name", SHAPES)
def test_a_named_shape_has_about_the_parameters_it_says(name):
    shape = ModelShape.from_config(find_shape(name).make_config())
    number, unit = name.removeprefix("llama-")[:-1], name[-1]
    millions = float(number) * {"m": 1, "b": 1000}[unit]
    assert 0.8 < shape.parameters() / 1e6 / millions < 1.3


def test_numbers_left_out_have_values():
    shape = find_shape("2x64x4")
    assert (shape.num_kv_heads, shape.ffn_size, shape.vocab_size) == (4, 192, 4096)
    shape = find_shape("2x64x4x2x100")
    assert (shape.num_kv_heads, shape.ffn_size, shape.vocab_size) == (2, 100, 4096)


@pytest.mark.parametrize("text", ["llama-230", "2x64", "0x64x4", "2x60x8", "2x64x4x3", "axbxc"])
def test_a_shape_that_is_none_is_refused(text):
    with pytest.raises(RecipeError, match="shape"):
        find_shape(text)


def test_attention_is_kept_evenly():
    assert str(spread_layout(20, 0.0, "mamba2")) == "AAAAAAAAAA AAAAAAAAAA"
    assert str(spread_layout(20, 0.8, "mamba2")) == "MMAMMMMAMM MMAMMMMAMM"
    assert str(spread_layout(4, 0.5, "mamba2")) == "MAMA"
    assert str(spread_layout(4, 0.99, "mamba2")) == "MMAM"
    assert str(spread_layout(4, 1.0, "mamba2")) == "MMMM"
    assert len(spread_layout(28, 0.6, "mamba2").converted) == 17
