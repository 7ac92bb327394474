"""An arm with one seed is run once, kept, and continued where it was stopped."""

import json
from dataclasses import replace

import pytest

from benchmarks.evidence import run
from benchmarks.evidence.arms import BASE
from benchmarks.evidence.run import Bench
from hybridize.training import loop

RANKINGS = {
    name: list(range(11, -1, -1)) for name in ("leave_one_out", "replace_one", "replace_one_at_0")
}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    for name, value in (("PROBLEMS", 1), ("MAX_NEW_TOKENS", 4), ("HELDOUT_TOKENS", 1024)):
        monkeypatch.setattr(run, name, value)
    monkeypatch.setattr(run, "ARMS", {"base": replace(BASE, stages=(2, 3), tokens=4096)})
    (tmp_path / "results").mkdir()
    ranked = json.dumps({"rankings": RANKINGS})
    (tmp_path / "results" / "importance-1.json").write_text(ranked)
    return Bench(tmp_path / "results", tmp_path / "work")


def test_an_arm_goes_through_its_stages_and_is_kept(bench, monkeypatch):
    made = bench.once("base", 1)
    assert [part["layers"] for part in made["stages"]] == [[10, 11], [9, 10, 11]]
    assert made["tokens"] == 4096
    assert made["reverse_kl"] == made["stages"][1]["reverse_kl"] > 0
    assert len(made["right"]) == 5
    monkeypatch.setattr(bench, "_make", lambda *_: pytest.fail("it was there already"))
    assert bench.once("base", 1) == made


def test_a_stopped_arm_continues_to_the_same_result(bench, monkeypatch):
    whole = bench.once("base", 1)
    bench.path("base", 1).unlink()
    with monkeypatch.context() as changed:
        changed.setattr(loop._Run, "_step", lambda *_: pytest.fail("these steps were done"))
        again = bench.once("base", 1)
    assert (again["reverse_kl"], again["right"]) == (whole["reverse_kl"], whole["right"])


def test_an_arm_that_another_process_runs_is_left_to_it(bench):
    with run._alone(bench.work / "base-1.lock") as mine:
        assert mine
        assert bench.once("base", 1) is None
