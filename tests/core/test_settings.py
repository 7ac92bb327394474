"""The environment is read at one place, strictly."""

import pytest

from hybridize.core.errors import MachineError
from hybridize.core.settings import Settings, read_settings


def test_an_empty_environment_leaves_the_choice():
    assert read_settings({}) == Settings(device=None, threads=None, forms=None)


def test_variables_are_read():
    found = read_settings(
        {"HYBRIDIZE_THREADS": "2", "HYBRIDIZE_DEVICE": "cpu", "HYBRIDIZE_FORMS": "ssd=chunked"}
    )
    assert found == Settings(device="cpu", threads=2, forms="ssd=chunked")


@pytest.mark.parametrize("text", ["two", "0", "-1"])
def test_a_wrong_number_is_named(text):
    with pytest.raises(MachineError, match="HYBRIDIZE_THREADS"):
        read_settings({"HYBRIDIZE_THREADS": text})
