"""A stage by two processes (gloo): compiled layers, who writes, and an error of one of them."""

import re

import pytest

from hybridize.core.artifacts import read_jsonl
from tests.pipeline.small import MODELS, node_states, run
from tests.pipeline.test_together import assert_same_weights, finish, start

TRACKIO = """\
import json, os

def note(*words):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps([int(os.environ["RANK"]), *words]) + "\\n")

def init(**options):
    note("init", options["name"])

def log(numbers, step):
    note("log", step)

def finish():
    note("finish")
"""
"""A stand-in for a tracker, which notes who calls it."""


TRACING = ("tests.pipeline.ranks", "trace")


@pytest.fixture
def alone(recipe, tmp_path):
    """The first stage by one process."""
    run(recipe, tmp_path / "alone", until="h1")
    return tmp_path / "alone"


@pytest.mark.slow
def test_layers_are_compiled_and_only_the_first_rank_writes(recipe, alone, tmp_path, monkeypatch):
    (tmp_path / "trackio.py").write_text(TRACKIO)
    monkeypatch.setenv("NOTES", str(tmp_path / "notes.jsonl"))
    out = tmp_path / "run"
    options = ("--until", "h1", "--set", "devices.compile=true", "--set", "track=[trackio]")
    _, errors = finish(start(recipe, out, *options, path=tmp_path, module=TRACING))
    graphs = re.findall(r"rank (\d): (\d+) graphs", errors)
    assert sorted(rank for rank, _ in graphs) == ["0", "1"] and min(int(n) for _, n in graphs) > 0
    assert_same_weights(out, alone, MODELS[0])
    lines, expected = (list(read_jsonl(f / MODELS[0] / "metrics.jsonl")) for f in (out, alone))
    assert [line["step"] for line in lines] == list(range(1, len(expected) + 1))
    for line, other in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    notes = list(read_jsonl(tmp_path / "notes.jsonl"))
    logged = [[0, "log", line["tokens"]] for line in lines]
    assert notes == [[0, "init", "small-h1"], *logged, [0, "finish"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("disk", r"checkpoint \S+ could not be written .*make room and run again\."),
        ("data", r"data text\.jsonl is not there\."),
        ("teacher", r"teacher is not there\."),
    ],
)
def test_an_error_of_one_rank_is_one_sentence_and_the_run_goes_on(
    recipe, alone, tmp_path, what, sentence
):
    out = tmp_path / "run"
    run(recipe, out, until="plan")
    hurt = start(recipe, out, "--until", "h1", module=("tests.pipeline.ranks", what))
    _, errors = finish(hurt, code=1)
    ours = errors.partition("torch/distributed/elastic")[0]
    assert len(re.findall(sentence, errors)) == 1, errors
    assert "Traceback" not in ours, errors
    assert node_states(out)["h1"] != "done"
    finish(start(recipe, out, "--until", "h1"))
    assert_same_weights(out, alone, MODELS[0])
    assert node_states(out)["h1"] == "done"
