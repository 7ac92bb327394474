"""Commands that read folders: run --dry-run, status, report, compare."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hybridize.core.artifacts import write_json, write_text
from hybridize.core.recipe import load_recipe


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(call, teacher, tmp_path):
    out, _ = call("run", "tiny", "--set", f"teacher.model={teacher}", "--dry-run")
    states = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert states["h6"] == "run"
    assert not (tmp_path / "runs").exists()


def test_run_refuses_an_impossible_plan_before_it_begins(call, teacher, tmp_path):
    settings = ["--set", f"teacher.model={teacher}", "--set", "stages.h10.converted=20"]
    _, err = call("run", "tiny", *settings, code=2)
    assert "converts 20 layers" in err
    assert not (tmp_path / "runs").exists()


def test_status_prints_what_the_run_wrote(call, tmp_path):
    nodes = [{"node": "h6", "state": "done", "seconds": 90.0}]
    write_json(tmp_path / "run" / "status.json", {"nodes": nodes})
    out, _ = call("status", "run")
    assert out.splitlines()[1].split() == ["h6", "done", "90", "s"]
    out, _ = call("status", "run", "--json")
    assert json.loads(out)["nodes"] == nodes
    _, err = call("status", "elsewhere", code=2)
    assert "is not a run folder" in err


def test_report_of_no_run_is_refused(call):
    _, err = call("report", "nowhere", code=2)
    assert "nowhere" in err
    assert "Traceback" not in err


@pytest.fixture
def make_model(tmp_path):
    def make(name, value):
        folder = tmp_path / name
        write_json(folder / "config.json", {"model_type": "llama", "hidden_size": 4})
        tensors = {"a.weight": torch.ones(2, 2), "b.weight": torch.full((2,), value)}
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


def test_compare_names_the_tensors_that_differ(call, make_model):
    make_model("first", 1.0)
    make_model("second", 2.0)
    out, _ = call("compare", "first", "second", "--json")
    assert json.loads(out) == {"config": [], "tensors": ["b.weight: differs"]}
    out, _ = call("compare", "first", "first")
    assert out == "config: the same\ntensors: the same\n"


DAMAGE = {"config.json": b"[]", "model.safetensors": b"\x20\0\0\0\0\0\0\0{"}


@pytest.mark.parametrize("name", DAMAGE)
def test_compare_says_which_file_is_damaged(call, make_model, name):
    make_model("first", 1.0)
    (make_model("second", 1.0) / name).write_bytes(DAMAGE[name])
    _, err = call("compare", "first", "second", code=2)
    assert err.startswith(f"model second: {name}") and err.count("\n") == 1


def test_compare_names_what_differs_between_runs(call, tmp_path):
    for name, lr in (("first", "1e-3"), ("second", "2e-3")):
        recipe = load_recipe("tiny", [f"distill.optimizer.lr={lr}"])
        write_text(tmp_path / name / "recipe.resolved.yaml", recipe.resolved())
        overall = {"accuracy": float(lr), "standard_error": 0.01}
        write_json(tmp_path / name / "eval" / "h6.json", {"overall": overall})
    out, _ = call("compare", "first", "second", "--json")
    found = json.loads(out)
    assert found["recipe"] == ["distill.optimizer.lr: 0.001 -> 0.002"]
    assert found["scores"] == ["h6: 0.001 ± 0.010 -> 0.002 ± 0.010"]
    assert found["layouts"] == []


def test_compare_refuses_what_is_neither(call, make_model):
    make_model("first", 1.0)
    _, err = call("compare", "first", "nowhere", code=2)
    assert "nowhere is neither a run nor a model" in err
