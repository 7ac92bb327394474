"""Trackers: copies of the metrics, whose failure costs no run."""

import sys
from types import SimpleNamespace

import pytest

from hybridize.core.errors import MachineError, RecipeError
from hybridize.core.recipe import Recipe
from hybridize.core.trackers import find_trackers
from hybridize.training import trackers
from hybridize.training.metrics import LeftOut
from tests.training.test_metrics import record

NUMBERS = {
    "counted_tokens": 300_000,
    "loss": 0.2143,
    "parts/reverse_kl": 0.2143,
    "lr": 2.7e-4,
    "grad_norm": 0.83,
    "tokens_per_second": 41_200.0,
    "seconds": 5.0,
    "peak_gib": 62.1,
    "heldout/reverse_kl": 0.5,
}


def test_the_numbers_are_those_of_the_line():
    assert trackers.list_numbers(record(2, heldout={"reverse_kl": 0.5})) == NUMBERS
    bad = trackers.list_numbers(record(2, left_out=LeftOut("the loss", (3, 4))))
    assert "loss" not in bad and not [key for key in bad if "left_out" in key]


@pytest.fixture
def stubs(monkeypatch):
    """Stand-ins that note how the packages are called."""
    calls = []

    def note(name, answer=None):
        def call(*args, **options):
            calls.append((name, args, options))
            return answer

        return call

    run = SimpleNamespace(log=note("wandb.log"), finish=note("wandb.finish"))
    wandb = SimpleNamespace(init=note("wandb.init", run))
    names = ("init", "log", "finish")
    trackio = SimpleNamespace(**{name: note(f"trackio.{name}") for name in names})
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    return calls


def test_sinks_get_the_numbers_by_tokens_and_are_closed(stubs, tmp_path):
    with trackers.tracked(["wandb", "trackio"], "small-h1", tmp_path / "h1") as track:
        track(record(2, heldout={"reverse_kl": 0.5}))
    names = [name for name, _, _ in stubs]
    assert names == [
        f"{one}.{what}"
        for what in ("init", "log", "finish")
        for one in trackers.SINKS
        if one != "tensorboard"
    ]
    for name, args, options in stubs:
        if name.endswith("log"):
            assert args == (NUMBERS,) and options == {"step": 2 * 512_000}
        if name.endswith("init"):
            assert options["name"] == "small-h1" and options["resume"] == "allow"


def test_a_tracker_that_fails_is_left_and_said(stubs, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(sys.modules["trackio"], "log", fail)
    with (
        pytest.warns(UserWarning, match=r"trackio failed .*ConnectionError: no network.*jsonl"),
        trackers.tracked(["trackio", "wandb"], "small-h1", tmp_path) as track,
    ):
        track(record(1))
        track(record(2))
    assert [name for name, _, _ in stubs].count("wandb.log") == 2
    assert "trackio.finish" not in [name for name, _, _ in stubs]


def test_tensorboard_holds_each_number_once_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first in (1, 2):
        with trackers.tracked(["tensorboard"], "small-h1", tmp_path) as track:
            for step in range(first, first + 2):
                track(record(step, loss=float(10 * first + step)))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(point.step // 512_000, point.value) for point in events.Scalars("loss")]
    assert found == [(1, 11.0), (2, 22.0), (3, 23.0)]
    assert "parts/reverse_kl" in events.Tags()["scalars"]


def test_a_package_that_is_missing_is_said_before_training(monkeypatch):
    monkeypatch.setattr("hybridize.core.trackers.find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r'pip install "hybridize\[wandb\]"'):
        find_trackers(("wandb",))


def test_an_unknown_tracker_is_refused():
    values = {"version": 1, "teacher": {"model": "shipped"}, "track": ["mlflow"]}
    with pytest.raises(RecipeError, match="track"):
        Recipe.from_values(values)
