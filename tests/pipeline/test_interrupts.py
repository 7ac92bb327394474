"""Interrupts outside training: one sentence, an exit code, and nothing lost that was finished."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hybridize.core.artifacts import read_jsonl
from hybridize.core.errors import Interrupted
from hybridize.pipeline.observer import Observer
from hybridize.stages import importance
from hybridize.training.loop import fit
from tests.pipeline.small import node_states, run
from tests.pipeline.test_kill import ROOT


@pytest.fixture(autouse=True)
def heard():
    """A shell that starts a command in the background has it ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupting(Observer):
    """Sends a signal to its own process when a node, or a piece of one, begins."""

    def __init__(self, node, number, piece=None):
        self.node, self.number, self.piece = node, number, piece

    def node_started(self, node):
        if node == self.node and self.piece is None:
            os.kill(os.getpid(), self.number)
            time.sleep(1)

    def node_progressed(self, node, done, total):
        if node == self.node and done == self.piece:
            os.kill(os.getpid(), self.number)


def interrupt(recipe, out, node, number, piece=None):
    from hybridize.pipeline import run_recipe

    with pytest.raises(Interrupted) as raised:
        run_recipe(recipe, out, device="cpu", observer=Interrupting(node, number, piece))
    assert str(raised.value).endswith("Run the same again to continue.")
    return raised.value


def test_an_interrupted_importance_keeps_its_layers(recipe, tmp_path):
    out, node = tmp_path / "run", "importance/leave_one_out"
    error = interrupt(recipe, out, node, signal.SIGINT, piece=2)
    assert f"stopped in {node}" in str(error) and error.exit_code == 130
    before = (out / node / "layers.jsonl").read_text()
    assert before.count("\n") == 2
    assert node_states(out)[node] == "begun"
    run(recipe, out, until="importance")
    assert (out / node / "layers.jsonl").read_text().startswith(before)


@pytest.mark.parametrize("node", ["eval/h1", "bench"])
def test_other_stops_begin_again_and_what_was_before_stands(recipe, copied, node):
    (copied / node / "result.json").unlink()
    error = interrupt(recipe, copied, node, signal.SIGINT)
    assert f"stopped in {node}; what was finished is kept in {copied}" in str(error)
    assert node_states(copied).pop(node) in ("begun", "to do")
    assert run(recipe, copied) == [node]


def test_a_probe_that_is_interrupted_in_training_keeps_the_layers_before(
    recipe, copied, monkeypatch
):
    node = "importance/replace_one-h2"
    (copied / node / "result.json").unlink()
    lines = (copied / node / "layers.jsonl").read_text().splitlines(keepends=True)
    (copied / node / "layers.jsonl").write_text(lines[0])
    with monkeypatch.context() as patch:
        patch.setattr(importance, "fit", lambda *words: fit(*words, stop=lambda: True))
        with pytest.raises(Interrupted, match=f"stopped in {node}; the layers measured so far"):
            run(recipe, copied)
    assert (copied / node / "layers.jsonl").read_text() == lines[0]
    assert run(recipe, copied)[0] == node


def test_the_time_is_looked_at_between_stops_and_between_layers(recipe, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match=r"before importance/leave_one_out; .*Run the same"):
        run(recipe, out, max_hours=0.0)
    asked = iter([False, True])
    monkeypatch.setattr("hybridize.pipeline._stop_at", lambda deadline: lambda: next(asked))
    with pytest.raises(Interrupted, match="in importance/leave_one_out; the layers measured so"):
        run(recipe, out)
    assert len(list(read_jsonl(out / "importance/leave_one_out/layers.jsonl"))) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_ends_with_a_sentence_and_the_code_of_the_signal(
    recipe, tmp_path, number, code
):
    out = tmp_path / "run"
    long = ["--set", "importance.leave_one_out.tokens=1M"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hybridize", "run", str(recipe), "--out", str(out), *long],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (out / "importance/leave_one_out/begun.json").exists():
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("stopped in importance/leave_one_out;")
    assert errors.splitlines()[-1].endswith("Run the same again to continue.")
