"""serve, chat with it and bench with engines, as a user calls them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hybridize.cli.app import app
from hybridize.core.shapes import find_shape, spread_layout
from hybridize.engines import Client, Sampling
from hybridize.models import load_tokenizer
from hybridize.models.random_weights import make_random

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "hybridize")
SHAPE = "2x32x4x2x64x64"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A student of random weights that knows the shipped words, trained on short rows."""
    shape = find_shape("2x32x4x2x64x176")
    model = make_random(shape, spread_layout(2, 0.5, "mamba2"), name="h1")
    path = tmp_path_factory.mktemp("models") / "h1"
    model.network.config.last_training_window = 16
    model.network.config.teacher.max_position_embeddings = 512
    model.network.config.max_position_embeddings = 512
    type(model)(model.name, model.network, load_tokenizer("shipped")).save(path)
    return path


@pytest.fixture(scope="module")
def served(folder):
    """`hybridize serve` in a process: its URL, and the process."""
    process = subprocess.Popen(
        [*COMMAND, "serve", folder, "--port", "0", "--engine", "hybridize"],
        cwd=ROOT,
        env=os.environ | {"HYBRIDIZE_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    told = process.stdout.readline()
    assert " at http" in told, process.stderr.read()
    yield told.split(" at ")[1].strip(), process
    if process.poll() is None:
        process.kill()
        process.wait()


def test_serve_answers_and_chat_talks_to_it(served):
    url, _ = served
    assert url.endswith("/v1")
    assert Client(url).complete([5, 6], Sampling(max_tokens=3)).completion_tokens == 3
    arguments = ["chat", url, "--max-new-tokens", "8"]
    done = CliRunner().invoke(app, arguments, input="add : 1 + 2 ?\nsort : b a ?\n\n")
    assert done.exit_code == 0, done.output
    assert "h1 at http" in done.stderr
    assert done.stderr.count("tokens, the first after") == 2
    assert "warning: the conversation has" in done.stderr
    assert "thinking: " in done.stdout


def test_serve_stops_gracefully_and_has_said_what_it_does(served):
    url, process = served
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    told = process.stderr.read()
    assert "engine hybridize" in told
    assert "warning: requests may have 512 tokens" in told
    assert "rows of 16" in told
    assert "stopping" in told
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            Client(url).get("/health")
        except Exception:
            return
    raise AssertionError("the server still answers")


def test_chat_with_a_folder_shows_thinking_and_speed(folder):
    arguments = ["chat", str(folder), "--max-new-tokens", "5"]
    done = CliRunner().invoke(app, arguments, input="add : 1 + 2 ?\n")
    assert done.exit_code == 0, done.output
    assert "AM" in done.stderr or "MA" in done.stderr
    assert "5 tokens, the first after" in done.stderr and "tok/s" in done.stderr


def test_chat_with_nobody_says_so():
    done = CliRunner().invoke(app, ["chat", "http://127.0.0.1:9"])
    assert done.exit_code == 3
    assert "does not answer" in done.output


def test_serve_refuses_what_it_cannot(call, folder):
    _, err = call("serve", folder, "--engine", "sglang", code=2)
    assert "not an engine" in err
    _, err = call("serve", "nowhere/at/all", code=2)
    assert "no such folder" in err


def test_bench_measures_shapes_in_an_engine(call, tmp_path):
    arguments = ["--shape", SHAPE, "--converted", "0,50", "--engine", "hybridize"]
    arguments += ["--loads", "4:6", "--concurrency", "2", "--repeats", "1"]
    out, err = call("bench", *arguments, "--out", "speed", "--json")
    found = json.loads(out)
    assert [model["layout"] for model in found["models"]] == ["AA", "MA"]
    assert found["prefix_caching"] is False
    row = found["models"][1]["rows"][0]
    assert (row["input_tokens"], row["output_tokens"], row["concurrency"]) == (4, 6, 2)
    assert row["tokens_per_second"] > 0 and row["peak_memory_bytes"] > row["cache_bytes"] > 0
    assert row["tokens_per_processor_second"] > 0
    files = {path.name for path in (tmp_path / "speed").iterdir()}
    assert files == {f"bench-hybridize.{kind}" for kind in ("json", "md", "csv", "svg")}
    assert "prefix caching off" in (tmp_path / "speed" / "bench-hybridize.md").read_text()
    assert "random weights" in err


def test_bench_measures_shapes_here(call):
    arguments = ["--shape", SHAPE, "--converted", "0,50", "--prompt-tokens", "8"]
    out, _ = call("bench", *arguments, "--output-tokens", "2", "--repeats", "1", "--json")
    assert [model["model"] for model in json.loads(out)["models"]] == ["teacher", "h1"]


def test_bench_of_nothing_says_so(call):
    _, err = call("bench", code=2)
    assert "nothing to measure" in err
    _, err = call("bench", "--shape", "llama-230", code=2)
    assert "Did you mean llama-230m?" in err
