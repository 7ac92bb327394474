"""A disk that fills up while a model is written: what stood there stands, nothing looks whole."""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import hybridize as hz
from hybridize.core.errors import MachineError, ModelError
from hybridize.models import load_model, save_model
from hybridize.surgery import convert
from tests.models.apriel import Form, make_checkpoint
from tests.tiny import as_student, tiny_teacher, tokens


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("room", [0, 1000, 20_000])
def test_a_model_is_saved_whole_or_not_at_all(room: int, tmp_path: Path) -> None:
    model = as_student(tiny_teacher())
    folder = save_model(model, None, tmp_path / "out")
    other = convert(model, model.layout.convert([1], to="mamba2"))
    with largest_file(room), pytest.raises(MachineError, match="out could not be written"):
        save_model(other, None, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert torch.equal(load_model(folder)(tokens()).logits, model(tokens()).logits)
    with largest_file(room), pytest.raises(MachineError, match="fresh could not be written"):
        save_model(other, None, tmp_path / "fresh")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    model = hz.load_model(make_checkpoint(tmp_path / "m", Form()))
    with largest_file(1000), pytest.raises(MachineError, match="out could not be written"):
        hz.export(model, tmp_path / "out", format="apriel-h1", verify=False)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


KILLED = """
import os, signal, sys
from pathlib import Path
from hybridize.models import HybridConfig, load_model, save_model

def stop(self, folder, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

model = load_model(sys.argv[1])
HybridConfig.save_pretrained = stop
save_model(model, None, sys.argv[2])
"""


def test_what_a_killed_process_leaves_does_not_look_complete(tmp_path: Path) -> None:
    folder = save_model(as_student(tiny_teacher()), None, tmp_path / "m")
    arguments = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "out")]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    left = tmp_path / ".out.writing"
    assert (left / "model.safetensors").exists() and not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_model(left)
    (left / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_model(load_model(folder), None, tmp_path / "out")
    assert not left.exists()
