"""Devices, precision and random state."""

import pytest
import torch

from hybridize.core.errors import MachineError
from hybridize.training.device import choose_device, peak_gib, precision, seeded


def test_a_device_that_is_not_there_is_named():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device().type in ("cpu", "mps", "cuda")
    with pytest.raises(MachineError, match="device 'tpu' is not there"):
        choose_device("tpu")


def test_bfloat16_is_for_products():
    x_NN = torch.ones(2, 2)
    with precision(torch.device("cpu"), "bfloat16"):
        assert (x_NN @ x_NN).dtype == torch.bfloat16
    with precision(torch.device("cpu"), "float32"):
        assert (x_NN @ x_NN).dtype == torch.float32


def test_the_callers_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    with seeded(torch.device("cpu"), 5):
        first = torch.rand(3)
    with seeded(torch.device("cpu"), 5):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_is_in_gib():
    assert 0.05 < peak_gib(torch.device("cpu")) < 500
