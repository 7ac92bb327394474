"""A run that is killed at any moment and continued ends in the weights of an unbroken one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hybridize.core.artifacts import read_jsonl
from hybridize.training.loop import fit
from hybridize.training.objectives import Distillation
from hybridize.training.optim import OptimizerSettings, ScheduleSettings
from hybridize.training.settings import FitSettings
from tests.training.tiny import RandomRows, TinyModel

STEPS, KILLS = 100, 3
ROOT = Path(__file__).parents[2]
SETTINGS = FitSettings(
    tokens=STEPS * 32,
    tokens_per_step=32,
    optimizer=OptimizerSettings(name="muon", lr=1e-2),
    schedule=ScheduleSettings(name="cosine"),
    checkpoint_every=64,
)


def run(out, pause=0.0):
    model = TinyModel(1, dropout=0.1)
    fit(
        model,
        Distillation(TinyModel(2)),
        RandomRows(),
        SETTINGS,
        out,
        progress=lambda record: time.sleep(pause),
    )
    return model


def start(out):
    code = (
        "from pathlib import Path; from tests.training import test_kill as t; import torch;"
        "torch.set_num_threads(1); "
        f"t.run(Path({str(out)!r}), 0.01)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


def steps_logged(out):
    return sum(1 for _ in read_jsonl(out / "metrics.jsonl"))


@pytest.fixture
def one_thread():
    """Sums in several threads may round otherwise, and threads fight over the cores of a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_killed_at_random_moments_and_continued(tmp_path):
    expected = run(tmp_path / "whole")
    rng, out, kills = random.Random(0), tmp_path / "killed", 0
    while kills < KILLS:
        process = start(out)
        target = steps_logged(out) + rng.randrange(3, 20)
        while process.poll() is None and steps_logged(out) < target:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.02)
        assert process.poll() is None, process.communicate()[1]
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
    found = run(out)
    for (name, value), other in zip(
        found.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
    assert [line["step"] for line in read_jsonl(out / "metrics.jsonl")] == list(range(1, STEPS + 1))
