"""Checkpoints: whole or not at all, and refused when damaged."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridize.core.artifacts import read_json
from hybridize.core.errors import MachineError, RunError
from hybridize.training import checkpoint


def groups(value=1.0):
    return {"model": {"a.b": torch.full((3, 2), value)}, "random": {"cpu": torch.arange(5)}}


def load(folder):
    """Read the latest checkpoint as `save` was given it; None where there is none."""
    latest = checkpoint.find_latest(folder)
    if latest is None:
        return None
    state = read_json(latest / checkpoint.STATE)
    checkpoint.verify(latest, state["checksums"])
    files = map(Path, state.pop("checksums"))
    return {file.stem: load_file(latest / file) for file in files}, state


def test_what_is_read_is_what_was_written(tmp_path):
    assert load(tmp_path / "checkpoint") is None
    checkpoint.save(tmp_path / "checkpoint", groups(), {"step": 3, "loss": 0.1})
    found, state = load(tmp_path / "checkpoint")
    assert state == {"step": 3, "loss": 0.1}
    assert torch.equal(found["model"]["a.b"], groups()["model"]["a.b"])
    assert torch.equal(found["random"]["cpu"], torch.arange(5))


def test_a_later_checkpoint_takes_the_place_of_the_one_before(tmp_path):
    for step in (9, 10, 100):
        checkpoint.save(tmp_path, groups(step), {"step": step})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000100"]
    assert load(tmp_path)[1]["step"] == 100
    checkpoint.remove(tmp_path)
    assert load(tmp_path) is None


def test_tensors_are_written_in_any_memory_layout(tmp_path):
    tensor = torch.arange(6.0).view(2, 3).T
    checkpoint.save(tmp_path, {"model": {"a": tensor}}, {"step": 1})
    assert torch.equal(load(tmp_path)[0]["model"]["a"], tensor)


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_damage_is_named(tmp_path, damage):
    checkpoint.save(tmp_path, groups(), {"step": 3})
    file = tmp_path / "step-00000003" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data if damage == "flip" else data[:-4])
    if damage == "missing":
        file.unlink()
    with pytest.raises(RunError, match=r"model.safetensors is damaged.*Remove .* from the start"):
        load(tmp_path)


def test_a_damaged_state_is_named(tmp_path):
    checkpoint.save(tmp_path, groups(), {"step": 3})
    file = tmp_path / "step-00000003" / checkpoint.STATE
    file.write_text(file.read_text()[:-5])
    with pytest.raises(RunError, match=r"state.json is damaged.*Remove .* from the start"):
        checkpoint.read_weights(tmp_path, torch.nn.Linear(1, 1))


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, groups(1.0), {"step": 1})

    def fill(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", fill)
        with pytest.raises(MachineError, match=r"No space left on device.*make room"):
            checkpoint.save(tmp_path, groups(2.0), {"step": 2})
    assert load(tmp_path)[1]["step"] == 1
    checkpoint.save(tmp_path, groups(2.0), {"step": 2})
    assert load(tmp_path)[0]["model"]["a.b"][0, 0] == 2
