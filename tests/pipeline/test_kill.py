"""A run that is killed at any moment and continued ends in the very weights of an unbroken one."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hybridize.cli import main
from hybridize.core.artifacts import read_jsonl
from tests.pipeline.small import NODES, hash_weights, node_states, run, run_paused

ROOT = Path(__file__).parents[2]
KILLS = 4
RUNS = 50
SHORT = ("stages.h1.tokens=1k", "stages.h2.tokens=1k", "sft.tokens=768")


def count(news):
    return len(news.read_text().splitlines()) if news.exists() else 0


def start_server():
    """Return what starts processes with everything imported, so that a kill costs no start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pipeline.test_kill", "hybridize.pipeline.actions"])
    return context


def be_the_command(arguments):
    """Be `hybridize`, in a process of its own that has everything imported."""
    torch.set_num_threads(1)
    sys.argv = ["hybridize", *arguments]
    main()


def start_command(context, recipe, out):
    changes = [word for change in SHORT for word in ("--set", change)]
    arguments = ["run", str(recipe), "--out", str(out), "--device", "cpu", *changes]
    process = context.Process(target=be_the_command, args=(arguments,))
    process.start()
    return process


def kill_once(context, recipe, out, rng, seconds):
    """Kill a run at a moment drawn from its length; return the node it was in, None if it ended."""
    process = start_command(context, recipe, out)
    process.join(rng.uniform(0, seconds))
    if process.exitcode == 0:
        return None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    if not (out / "status.json").exists():
        return "before the first"
    running = [name for name, state in node_states(out).items() if state == "running"]
    return running[0] if running else "after the last"


@pytest.mark.slow
def test_fifty_runs_killed_at_random_moments_all_end_in_the_same_weights(recipe, tmp_path):
    rng, context = random.Random(50), start_server()
    for name in ("warm", "whole"):
        started = time.monotonic()
        whole = start_command(context, recipe, tmp_path / name)
        whole.join()
        assert whole.exitcode == 0
    seconds, expected = time.monotonic() - started, hash_weights(tmp_path / "whole")
    killed_in, equal = [], 0
    while len(killed_in) < RUNS:
        out = tmp_path / "run"
        node = kill_once(context, recipe, out, rng, seconds)
        if node is not None:
            again = start_command(context, recipe, out)
            again.join()
            assert again.exitcode == 0
            killed_in.append(node)
            equal += hash_weights(out) == expected
        shutil.rmtree(out, ignore_errors=True)
    counts = {name: killed_in.count(name) for name in dict.fromkeys(killed_in)}
    print(f"{equal} of {RUNS} equal, {seconds:.1f} s a run; killed in {counts}")  # noqa: T201
    assert equal == RUNS


def test_killed_at_random_moments_and_continued(recipe, finished, tmp_path):
    out, news = tmp_path / "run", tmp_path / "news"
    total = count(finished.with_name("news"))
    rng, context = random.Random(1), start_server()
    for kill in range(KILLS):
        target = count(news) + rng.randrange(total // 8, total // 4)
        process = context.Process(target=run_paused, args=(recipe, out, news))
        process.start()
        while process.is_alive() and count(news) < target:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.05)
        assert process.is_alive(), f"ended by itself before kill {kill}, exit {process.exitcode}"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    left = run(recipe, out)
    assert left, "something was left to do"
    assert left == NODES[-len(left) :]
    assert hash_weights(out) == hash_weights(finished)
    assert node_states(out) == dict.fromkeys(NODES, "done")
    for stage in ("stages/01-h1", "stages/02-h2"):
        assert [line["step"] for line in read_jsonl(out / stage / "metrics.jsonl")] == [
            line["step"] for line in read_jsonl(finished / stage / "metrics.jsonl")
        ]


def test_a_terminated_run_exits_143_with_a_checkpoint(recipe, copied):
    stage = copied / "stages" / "01-h1"
    shutil.rmtree(stage)
    long = ["--set", "stages.h1.tokens=4M", "--set", "distill.checkpoint_every=4M"]
    command = [sys.executable, "-m", "hybridize", "run", str(recipe), "--out", str(copied)]
    process = subprocess.Popen(
        [*command, "--until", "h1", *long, "--device", "cpu"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and sum(1 for _ in read_jsonl(stage / "metrics.jsonl")) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("stopped after step")
    assert last.endswith("Run the same again to continue.")
    steps = [line["step"] for line in read_jsonl(stage / "metrics.jsonl")]
    assert [path.name for path in (stage / "checkpoint").iterdir()] == [f"step-{steps[-1]:08d}"]
    assert not (stage / "result.json").exists()
    assert node_states(copied)["h1"] == "begun"


def test_the_status_command_tells_the_states(finished):
    command = [sys.executable, "-m", "hybridize", "status", str(finished)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["stop", "state", "time"]
    assert [line[:2] for line in lines[1:]] == [[name, "done"] for name in NODES]
