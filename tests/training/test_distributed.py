"""Two processes (gloo) train like one; runs go on with any number of them; deaths end jobs."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridize.core.artifacts import read_jsonl
from hybridize.core.errors import Interrupted, MachineError
from hybridize.training.data import share_of_rank
from hybridize.training.device import process_group
from hybridize.training.distributed import Ranks, find_layers, prepared_layers, read_batches
from tests.training.ranks import STEPS, OddModel, train
from tests.training.tiny import RandomRows, TinyModel

ROOT = Path(__file__).parents[2]
RANKS = 2


def start(jobs, ranks=RANKS):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.Popen(
        [*command, "-m", "tests.training.ranks", json.dumps(jobs)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def train_alone(out, **job):
    """Train with one process: here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = OddModel(1)
    error = train(model, OddModel(2).requires_grad_(False), out, **job)
    torch.set_num_threads(before)
    return {name: value.detach() for name, value in model.state_dict().items()}, error


def losses(out):
    return [
        (line["loss"], line["counted_tokens"], line["grad_norm"], line.get("heldout"))
        for line in read_jsonl(Path(out) / "metrics.jsonl")
    ]


def assert_close(out, expected, weights, expected_weights):
    found = losses(out)
    assert len(found) == STEPS
    for line, other in zip(found, expected, strict=True):
        assert line[1] == other[1]
        assert line[0] == pytest.approx(other[0], rel=1e-5)
        assert line[2] == pytest.approx(other[2], rel=1e-4)
        assert (line[3] is None) == (other[3] is None)
        if line[3]:
            assert line[3]["reverse_kl"] == pytest.approx(other[3]["reverse_kl"], rel=1e-5)
    for name, value in weights.items():
        if name != "calls":
            torch.testing.assert_close(value, expected_weights[name], rtol=1e-4, atol=1e-5)


OPTIMIZERS = ("adamw", "muon")
ENDS = {
    "no-room-for-metrics": (
        {"full": (0, 300)},
        r".*metrics\.jsonl could not be written .*make room and run again\.",
    ),
    "no-room-on-the-first": (
        {"full": (0, 2500)},
        r"checkpoint .*step-00000004 could not be written .*make room and run again\.",
    ),
    "no-room-on-the-second": (
        {"full": (1, 2500)},
        r"checkpoint .*step-00000004 could not be written .*make room and run again\.",
    ),
    "no-row-on-the-second": ({"missing": 13}, r"row 13 cannot be read\."),
}
"""What goes wrong in the third or fourth step of one of two ranks, and what all ranks say of it."""
LAYERS = {"reverse_kl": 1.0, "hidden_states": 0.5}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run all that two processes do by one start of torchrun, since that is what takes time."""
    folder = tmp_path_factory.mktemp("ranks")
    expected, jobs = {}, {}
    for name in OPTIMIZERS:
        expected[name], error = train_alone(folder / f"one-{name}", optimizer=name)
        assert error is None
        train_alone(folder / f"from_one-{name}", optimizer=name, stop_after=3)
        jobs[f"two-{name}"] = {"optimizer": name}
        jobs[f"from_one-{name}"] = {"optimizer": name}
        jobs[f"from_two-{name}"] = {"optimizer": name, "stop_after": 3}
    jobs["lean"] = {"activation_checkpointing": True}
    jobs["traced"] = {"compile": True, "backend": "aot_eager"}
    jobs["mixer"] = {"train": ["mixer"]}
    jobs["layers"] = {"watch": {"loss": LAYERS}}
    expected["layers"], error = train_alone(folder / "one-layers", **jobs["layers"])
    assert error is None
    jobs["skipping"] = {"watch": {"poison": 13}, "skip_bad_batches": 1}
    expected["skipping"], error = train_alone(folder / "one-skipping", **jobs["skipping"])
    assert error is None
    jobs["poisoned"] = {"watch": {"poison": 13}}
    jobs |= {name: job for name, (job, _) in ENDS.items()}
    process = start({str(folder / name): job for name, job in jobs.items()})
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return folder, expected


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_processes_train_like_one(runs, name):
    folder, expected = runs
    found = load_file(folder / f"two-{name}" / "weights.safetensors")
    assert_close(folder / f"two-{name}", losses(folder / f"one-{name}"), found, expected[name])
    assert found.keys() == expected[name].keys()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_processes_continue_what_one_began(runs, name):
    folder, expected = runs
    found = load_file(folder / f"from_one-{name}" / "weights.safetensors")
    assert_close(folder / f"from_one-{name}", losses(folder / f"one-{name}"), found, expected[name])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_process_continues_what_two_began(runs, name):
    folder, expected = runs
    out = folder / f"from_two-{name}"
    assert (folder / f"from_two-{name}.1").read_text().startswith("stopped after step 3 of 6")
    assert {path.name[:6] for path in out.glob("checkpoint/*/*.safetensors")} == {"shard-"}
    found, error = train_alone(out, optimizer=name)
    assert error is None
    assert_close(out, losses(folder / f"one-{name}"), found, expected[name])


def test_activation_checkpointing_changes_nothing(runs):
    folder, expected = runs
    found = load_file(folder / "lean" / "weights.safetensors")
    assert_close(folder / "lean", losses(folder / "one-adamw"), found, expected["adamw"])


def assert_compiled_by_all(folder, name, expected):
    found = load_file(folder / name / "weights.safetensors")
    assert_close(folder / name, losses(folder / "one-adamw"), found, expected)
    for rank in range(RANKS):
        assert int((folder / f"{name}.graphs.{rank}").read_text()) > 0


def test_two_processes_trace_split_layers_and_train_alike(runs):
    folder, expected = runs
    assert_compiled_by_all(folder, "traced", expected["adamw"])


def test_losses_between_layers_are_the_same(runs):
    folder, expected = runs
    found = load_file(folder / "layers" / "weights.safetensors")
    assert_close(folder / "layers", losses(folder / "one-layers"), found, expected["layers"])


def test_only_chosen_parameters_change(runs):
    folder, _ = runs
    found, before = load_file(folder / "mixer" / "weights.safetensors"), OddModel(1).state_dict()
    changed = {name for name, value in found.items() if not torch.equal(value, before[name])}
    assert "layers.1.mixer.in_proj.weight" in changed
    assert changed - {"calls"} <= {name for name in before if ".mixer." in name}


def test_a_loss_that_is_no_number_on_one_rank_ends_all(runs):
    folder, _ = runs
    words = "step 3: the loss is not finite, data rows 12 to 13."
    for rank in range(RANKS):
        assert (folder / f"poisoned.{rank}").read_text().startswith(words)
    (kept,) = (folder / "poisoned" / "checkpoint").iterdir()
    assert kept.name == "step-00000002"


@pytest.mark.parametrize("name", ENDS)
def test_an_error_of_one_rank_ends_all_and_the_run_goes_on(runs, name):
    folder, expected = runs
    said = {(folder / f"{name}.{rank}").read_text() for rank in range(RANKS)}
    assert len(said) == 1 and re.fullmatch(ENDS[name][1], said.pop())
    kept = [path.name for path in (folder / name / "checkpoint").glob("step-*")]
    assert kept == ["step-00000002"]
    found, error = train_alone(folder / name)
    assert error is None
    assert_close(folder / name, losses(folder / "one-adamw"), found, expected["adamw"])


def test_a_step_that_is_bad_on_one_rank_is_left_out_by_all(runs):
    folder, expected = runs
    found = load_file(folder / "skipping" / "weights.safetensors")
    lines, alone = (
        list(read_jsonl(folder / name / "metrics.jsonl")) for name in ("skipping", "one-skipping")
    )
    assert [line["step"] for line in lines if "left_out" in line] == [3]
    assert lines[2]["left_out"] == alone[2]["left_out"] == {
        "because": "the loss", "rows": [12, 13]
    }  # fmt: skip
    for line, other in zip(lines, alone, strict=True):
        assert line.get("loss", 0.0) == pytest.approx(other.get("loss", 0.0), rel=1e-5)
    for name, value in found.items():
        if name != "calls":
            torch.testing.assert_close(value, expected["skipping"][name], rtol=1e-4, atol=1e-5)


def test_a_damaged_share_is_refused_by_name(runs, tmp_path):
    folder, _ = runs
    (kept,) = (folder / "poisoned" / "checkpoint").iterdir()
    target = tmp_path / "checkpoint" / kept.name
    target.mkdir(parents=True)
    for file in kept.iterdir():
        content = bytearray(file.read_bytes())
        if file.name.startswith("shard-00002"):
            content[-5] ^= 1
        (target / file.name).write_bytes(content)
    _, error = train_alone(tmp_path)
    assert "shard-00002-model-00001-of-00001.safetensors is damaged" in str(error)


@pytest.mark.slow
def test_a_rank_killed_in_a_step_ends_the_job_and_the_run_goes_on(tmp_path):
    expected, _ = train_alone(tmp_path / "one")
    out = tmp_path / "two"
    process = start({str(out): {"watch": {"deadly": 18}}})
    started = time.monotonic()
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and "SIGKILL" in errors
    assert time.monotonic() - started < 100
    assert [path.name for path in (out / "checkpoint").iterdir()] == ["step-00000002"]
    process = start({str(out): {}})
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    found = load_file(out / "weights.safetensors")
    assert_close(out, losses(tmp_path / "one"), found, expected)


@pytest.mark.slow
def test_compiled_layers_train_alike(tmp_path):
    expected, _ = train_alone(tmp_path / "one")
    found, error = train_alone(tmp_path / "compiled", compile=True)
    assert error is None
    assert_close(tmp_path / "compiled", losses(tmp_path / "one"), found, expected)


@pytest.mark.slow
def test_two_processes_compile_split_layers_and_train_alike(tmp_path):
    expected, _ = train_alone(tmp_path / "one-adamw")
    job = {"compile": True, "backend": "inductor", "activation_checkpointing": True}
    process = start({str(tmp_path / "compiled"): job})
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    assert_compiled_by_all(tmp_path, "compiled", expected)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("num_rows", [1, 4, 5, 12])
def test_every_row_is_one_ranks_and_all_have_as_many_batches(num_rows, ranks):
    source, rows = RandomRows(), range(20, 20 + num_rows)
    seen, counted, numbers = [], 0, set()
    for rank in range(ranks):
        batches = list(read_batches(source, rows, 2, Ranks(rank, ranks)))
        numbers.add(len(batches))
        counted += sum(part.num_counted for part in batches)
        seen += share_of_rank(rows.start, num_rows, rank, ranks)
    assert seen == list(rows) and len(numbers) == 1
    whole = read_batches(source, rows, num_rows, Ranks())
    assert counted == sum(part.num_counted for part in whole)


def test_a_process_alone_agrees_with_itself():
    ranks = Ranks.of(TinyModel())
    assert (ranks.rank, ranks.size, ranks.is_first) == (0, 1, True)
    assert ranks.sum([0.1, 2.0]) == [0.1, 2.0] and ranks.any(True) and not ranks.any(False)
    assert ranks.gather("a") == ["a"] and ranks.broadcast("b") == "b"
    with pytest.raises(Interrupted, match="stop"), ranks.together():
        raise Interrupted("stop")


def test_layers_are_as_before_after_they_were_prepared():
    model = TinyModel()
    layers = find_layers(model)
    assert layers == tuple(model.layers)
    with prepared_layers(model, recompute=True, compiled=False):
        assert all("forward" in vars(layer) for layer in layers)
    assert not any("forward" in vars(layer) for layer in layers)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(MachineError, match="is not there"), process_group("warp", 0):
        pass
