"""A disk that fills up while a run is trained: one sentence, and the checkpoint before stands."""

import resource
import signal
from contextlib import contextmanager

import pytest
import torch

from hybridize.core.errors import MachineError
from hybridize.stages import importance
from hybridize.training.loop import fit
from hybridize.training.objectives import NextToken
from tests.training.test_loop import assert_same, settings, weights
from tests.training.tiny import RandomRows, TinyModel


@contextmanager
def largest_file(num_bytes):
    """Let no file grow beyond a size, as on a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def train(out, progress=None):
    model = TinyModel(1, dropout=0.1)
    options = settings(checkpoint_every=2 * 2 * 16)
    fit(model, NextToken(), RandomRows(), options, out, progress=progress)
    return model


@pytest.mark.parametrize(
    ("room", "file"), [(2500, "checkpoint"), (300, "metrics.jsonl")], ids=["tensors", "metrics"]
)
def test_a_full_disk_while_training_leaves_the_checkpoint_before(tmp_path, room, file):
    expected = train(tmp_path / "whole")
    limited = largest_file(room)

    def fill(record):
        if record.step == 3:
            limited.__enter__()

    try:
        with pytest.raises(MachineError, match=rf"{file}.* could not be written.*make room"):
            train(tmp_path / "full", fill)
    finally:
        limited.__exit__(None, None, None)
    assert_same(weights(expected), weights(train(tmp_path / "full")))


def test_a_full_disk_in_importance_keeps_the_layers_before(tmp_path):
    score = importance.LayerScore(layer=0, score=0.5, standard_error=None, tokens=1, seconds=0.0)
    importance._keep(score, tmp_path / "layers.jsonl")
    with (
        largest_file(100),
        pytest.raises(MachineError, match="measured before are kept: make room"),
    ):
        importance._keep(score, tmp_path / "layers.jsonl")
    found = importance._measure_layers([0], lambda layer: torch.nan, tmp_path, None)
    assert found == (score,)
