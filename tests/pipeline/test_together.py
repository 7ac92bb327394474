"""A recipe run by two processes (gloo) makes the models that one process makes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridize.core.artifacts import read_json, read_jsonl
from hybridize.core.errors import RunError
from hybridize.models.loading import load_model
from hybridize.pipeline.consolidate import consolidate
from hybridize.tasks import make
from hybridize.tasks.words import VOCABULARY
from tests.pipeline.small import MODELS, NODES, node_states, run
from tests.tiny import tiny_teacher
from tests.tiny_tasks import task_tokenizer
from tests.training.text_files import write

ROOT = Path(__file__).parents[2]


def start(recipe, out, *options, module=("hybridize",), path=ROOT):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", *module]
    return subprocess.Popen(
        [*command, "run", str(recipe), "--out", str(out), "--device", "cpu", *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{path}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, code=0):
    shown, errors = process.communicate(timeout=300)
    assert (process.returncode != 0) == (code != 0), errors
    return shown, errors


def assert_same_weights(out, finished, name, atol=1e-5):
    found, expected = (load_file(f / name / "model" / "model.safetensors") for f in (out, finished))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=atol)


@pytest.mark.slow
def test_two_processes_go_down_the_whole_street(recipe, finished, tmp_path):
    out = tmp_path / "run"
    shown, errors = finish(start(recipe, out, "--set", "devices.activation_checkpointing=true"))
    assert node_states(out) == dict.fromkeys(NODES, "done")
    assert shown.count("index.html") == 1 and errors.count("\nh2 done in") == 1
    assert_same_weights(out, finished, MODELS[0])
    one, two = ([list(read_jsonl(f / name / "metrics.jsonl")) for name in MODELS[:2]]
                for f in (finished, out))  # fmt: skip
    for found, expected in zip(two, one, strict=True):
        assert [line["counted_tokens"] for line in found] == [
            line["counted_tokens"] for line in expected
        ]
    for line, other in zip(two[0], one[0], strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    # The second stage, of a teacher of random weights at a high rate, multiplies a difference of
    # rounding by some 3 each step: it has to begin alike, and cannot end so.
    assert two[1][0]["loss"] == pytest.approx(one[1][0]["loss"], rel=1e-5)
    stale = start(recipe, out, "--set", "stages.h1.tokens=1024")
    _, errors = finish(stale, code=2)
    assert errors.count("h1 is stale") == 1 and "stages.h1.tokens: 2048 -> 1024" in errors


@pytest.mark.slow
def test_two_processes_begin_a_stage_and_one_ends_it(recipe, finished, tmp_path):
    out = tmp_path / "run"
    stage = out / "stages" / "01-h1"
    run(recipe, out, until="plan")
    process = start(recipe, out, "--until", "h1")
    while process.poll() is None and not any(read_jsonl(stage / "metrics.jsonl")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = finish(process, code=1)
    assert errors.count("Run the same again to continue.") == 1, errors
    kept = stage / "checkpoint"
    assert len(list(kept.glob("step-*/shard-*"))) == 2
    early = load_model(consolidate(kept, tmp_path / "early"))
    run(recipe, out, until="h1")
    assert_same_weights(out, finished, "stages/01-h1")
    last = load_model(out / "stages" / "01-h1" / "model")
    assert early.layout == last.layout
    moved = [
        float((value - last.state_dict()[name]).abs().max())
        for name, value in early.state_dict().items()
    ]
    assert 0 < max(moved) < 0.05


@pytest.mark.slow
def test_a_terminated_job_keeps_a_checkpoint_and_bfloat16_weights_stay_so(recipe, tmp_path):
    out = tmp_path / "run"
    stage = out / "stages" / "01-h1"
    options = ("--until", "h1", "--set", "teacher.dtype=bfloat16")
    long = ("--set", "stages.h1.tokens=4M", "--set", "distill.checkpoint_every=4M")
    process = start(recipe, out, *options, *long)
    while process.poll() is None and sum(1 for _ in read_jsonl(stage / "metrics.jsonl")) < 2:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = finish(process, code=1)
    assert errors.count("Run the same again to continue.") == 1, errors
    (kept,) = (stage / "checkpoint").iterdir()
    assert read_json(kept / "state.json")["step"] >= 2
    early = consolidate(stage / "checkpoint", tmp_path / "early")
    tensors = load_file(early / "model.safetensors")
    assert {value.dtype for name, value in tensors.items() if name.endswith("A_log")} == {
        torch.float32
    }
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16


@pytest.mark.slow
def test_two_processes_align_read_stored_text_and_keep_heads_tied(recipe, tmp_path):
    teacher = tiny_teacher(layers=4, vocab=len(VOCABULARY), tie_word_embeddings=True)
    teacher.save_pretrained(tmp_path / "teacher")
    task_tokenizer().save_pretrained(tmp_path / "teacher")
    problems = (make("add", seed=1, index=index, split="train") for index in range(60))
    text = write(
        tmp_path / "text.jsonl",
        [{"prompt": one.prompt_text, "completion": one.completion_text} for one in problems],
    )
    asked = [
        f"teacher.model={tmp_path / 'teacher'}",
        f"data.train={{kind: jsonl, path: {text}}}",
        "mixer.init=aligned",
        "align.tokens=1024",
    ]
    alone, out = tmp_path / "alone", tmp_path / "run"
    run(recipe, alone, *asked, until="h1")
    options = [option for override in asked for option in ("--set", override)]
    finish(start(recipe, out, "--until", "h1", *options))
    for layer in range(4):
        name = f"align/layer-{layer:02d}.safetensors"
        assert (out / name).read_bytes() == (alone / name).read_bytes()
    assert_same_weights(out, alone, MODELS[0])
    for line, other in zip(
        *(list(read_jsonl(f / MODELS[0] / "metrics.jsonl")) for f in (out, alone)), strict=True
    ):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-5)
    assert load_model(out / MODELS[0] / "model").config.tie_word_embeddings


def test_what_is_no_checkpoint_of_a_run_is_refused(tmp_path, copied):
    with pytest.raises(RunError, match="is not a checkpoint in a run folder"):
        consolidate(tmp_path / "stages" / "01-h1" / "checkpoint", tmp_path / "out")
    with pytest.raises(RunError, match="holds no checkpoint"):
        consolidate(copied / "stages" / "01-h1" / "checkpoint", tmp_path / "out")
