"""A layout converts, compares and prints itself, and both printed forms read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridize.core.errors import ModelError
from hybridize.core.layout import LETTERS, Layout, explain_letters

KINDS = st.sampled_from([*LETTERS, "hyena", "my_package.mixers:Hyena"])
LAYOUTS = st.builds(Layout, st.lists(KINDS, min_size=1, max_size=30).map(tuple))


@given(LAYOUTS)
def test_both_printed_forms_read_back(layout):
    assert Layout.parse(str(layout)) == layout
    assert Layout.parse(layout.runs()) == layout


@given(LAYOUTS, st.data())
def test_converting_twice_is_converting_once_and_touches_only_the_named_layers(layout, data):
    layers = data.draw(st.sets(st.integers(0, layout.num_layers - 1)))
    once = layout.convert(layers, to="mamba2")
    assert once.convert(layers, to="mamba2") == once
    assert set(once.diff(layout)) <= layers
    assert set(once.converted) >= set(layout.converted)


def test_the_strip_is_written_in_tens_and_the_runs_with_counts():
    layout = Layout.uniform(12).convert([3, 4, 11], to="mamba2")
    assert str(layout) == "AAAMMAAAAA AM"
    assert layout.runs() == "attention*3 mamba2*2 attention*6 mamba2"
    assert repr(layout) == "Layout('AAAMMAAAAA AM')"
    assert layout.converted == layout.layers("mamba2") == (3, 4, 11)


def test_a_kind_without_a_letter_is_printed_as_runs():
    layout = Layout.uniform(3).convert([1], to="pkg.mod:Hyena")
    assert str(layout) == "attention pkg.mod:Hyena attention"


@pytest.mark.parametrize("text", ["", "AAQ", "AAM?", "attention*x", "A attention"])
def test_what_is_no_layout_is_refused(text):
    with pytest.raises(ModelError, match="layout"):
        Layout.parse(text)


def test_a_layer_that_does_not_exist_is_named():
    with pytest.raises(ModelError, match="layer 12 does not exist"):
        Layout.uniform(12).convert([12], to="mamba2")


def test_layouts_of_different_lengths_are_not_compared():
    with pytest.raises(ModelError, match="4 and 5 layers"):
        Layout.uniform(4).diff(Layout.uniform(5))


@pytest.mark.parametrize("kind", ["m", "", "two words"])
def test_a_kind_that_could_not_be_read_back_is_refused(kind):
    with pytest.raises(ModelError, match="cannot name a mixer"):
        Layout((kind,))


def test_the_letters_that_stand_in_layouts_are_explained():
    layouts = [Layout.parse("AAG"), Layout.parse("AmW")]
    assert explain_letters(layouts) == (
        "A is attention, m is Mamba-1, G is Gated DeltaNet, W is sliding-window attention"
    )
    own = Layout(("attention", "package.module:Name"))
    assert explain_letters([own]) == "A is attention"
    for kind, letter in LETTERS.items():
        assert explain_letters([Layout((kind,))]).startswith(f"{letter} is ")
