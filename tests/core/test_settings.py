"""The environment is read at one place, strictly."""

import pytest

from hybridize.core.errors import MachineError
from hybridize.core.settings import read_settings


def test_an_empty_environment_gives_the_defaults():
    settings = read_settings({})
    assert (settings.device, settings.threads, settings.color) == (None, None, True)
    assert (settings.rank, settings.local_rank, settings.world_size) == (0, 0, 1)


def test_variables_are_read():
    settings = read_settings({"HYBRIDIZE_THREADS": "2", "NO_COLOR": "1", "WORLD_SIZE": "8"})
    assert (settings.threads, settings.color, settings.world_size) == (2, False, 8)


@pytest.mark.parametrize("text", ["two", "0", "-1"])
def test_a_wrong_number_is_named(text):
    with pytest.raises(MachineError, match="HYBRIDIZE_THREADS"):
        read_settings({"HYBRIDIZE_THREADS": text})
