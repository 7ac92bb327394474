"""Quantising a model: each type in a folder, measured; what is not measured is said."""

import pytest
import torch

from hybridize.core.artifacts import read_json
from hybridize.core.errors import MachineError, ModelError, RecipeError
from hybridize.engines import llama_cpp
from hybridize.engines.choose import choose_engine
from hybridize.evaluation.served import Load, ServedSettings
from hybridize.exports import gguf_back
from hybridize.stages import quantize
from hybridize.stages.quantize import QuantizeSettings
from tests.tiny_tasks import shake, task_rows, task_student, task_teacher

pytest.importorskip("gguf", reason="the extra gguf is not installed")
SETTINGS = QuantizeSettings(
    types=("q8_0", "q4_0"),
    tokens=512,
    served=ServedSettings(
        suite="tests.tiny_tasks:SHORT_KINDS",
        problems=2,
        max_new_tokens=4,
        at_once=2,
        load=Load(input_tokens=4, output_tokens=4),
        repeats=1,
        threads=1,
    ),
)


@pytest.fixture(scope="module")
def model():
    return shake(task_student(task_teacher()), seed=1, name="h2")


@pytest.fixture
def without_llama_cpp(monkeypatch):
    """Hide a llama.cpp that is installed."""
    monkeypatch.setattr(llama_cpp, "find_program", lambda: None)
    monkeypatch.setattr(llama_cpp, "find_package_version", lambda: None)


def test_each_type_is_smaller_and_farther_off(model, tmp_path, without_llama_cpp):
    said = []
    found = quantize.run(model, SETTINGS, task_rows("heldout"), tmp_path, say=said.append)
    whole, fine, small = found.rows
    assert [row["type"] for row in found.rows] == ["unquantised", "q8_0", "q4_0"]
    assert whole["bytes"] > fine["bytes"] > small["bytes"]
    assert whole["kl"] == 0 < fine["kl"] < small["kl"] / 10 and fine["kl_error"] < fine["kl"]
    assert fine["tensors"]["Q8_0"] > small["tensors"]["Q8_0"] > 0
    assert len(said) == 2 and said[1].startswith("q4_0: ")
    for row in (fine, small):
        folder = tmp_path / row["type"]
        assert (folder / "model.gguf").stat().st_size == row["bytes"]
        assert read_json(folder / "verification.json")["dtype"] == row["type"]
        assert "weights in q" in (folder / "README.md").read_text()
        assert (folder / "tokenizer.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q4_0", "q8_0", "quantize.json"]
    assert "scores and speed are not measured: llama.cpp is not installed" in str(found)
    assert found.engine is None and "accuracy" not in small
    assert read_json(tmp_path / "quantize.json")["rows"][2] == dict(small)


def test_a_file_read_wrongly_is_far_off(model, tmp_path, without_llama_cpp, monkeypatch):
    """What the table says is of the file, so that an error of whoever reads blocks shows."""
    rows = task_rows("heldout")
    right = quantize.make(model, "q8_0", SETTINGS, rows, tmp_path / "right")
    gather = gguf_back._gather

    def shift(gguf, stored, goal, placed, tensor):
        values = gather(gguf, stored, goal, placed, tensor)
        return values.roll(1) if goal == "blk.1.ffn_down.weight" else values

    monkeypatch.setattr(gguf_back, "_gather", shift)
    wrong = quantize.make(model, "q8_0", SETTINGS, rows, tmp_path / "wrong")
    assert wrong.bytes == right.bytes
    assert wrong.kl > 20 * right.kl


def test_what_cannot_be_quantised_is_refused(model, tmp_path, monkeypatch):
    rows = task_rows("heldout")
    for types, reason in {
        ("q4",): "'q4' is not a type. .*Known: q8_0",
        ("q8_0", "q8_0"): "q8_0 is named twice",
    }.items():
        with pytest.raises(RecipeError, match=reason):
            quantize.run(model, QuantizeSettings(types=types), rows, tmp_path)
    monkeypatch.setattr(quantize, "need_quantizer", _refuse)
    with pytest.raises(MachineError, match="no llama-quantize"):
        quantize.run(model, QuantizeSettings(types=("q8_0", "q4_k_m")), rows, tmp_path)
    with pytest.raises(ModelError, match="cannot be quantised as GGUF: no layer is attention"):
        quantize.make(
            task_student(task_teacher(), "MMMM"), "q8_0", SETTINGS, rows, tmp_path / "out"
        )
    assert not list(tmp_path.iterdir())


def _refuse(name):
    raise MachineError(f"no llama-quantize for {name}")


def test_llama_cpp_serves_each_type_and_answers_as_its_values_say(model, tmp_path):
    if llama_cpp.LlamaCpp().version() is None:
        pytest.skip("llama.cpp is not installed: what it answers is not checked")
    found = quantize.run(model, SETTINGS, task_rows("heldout"), tmp_path)
    assert found.not_served is None and found.engine
    whole, *rows = found.rows
    assert whole["difference"] is None
    for row in rows:
        assert row["unchecked"] is None and 0 < row["deviation"] < 0.5
        assert row["num_problems"] == 4 and 0 <= row["accuracy"] <= 1
        assert row["difference"] == pytest.approx(row["accuracy"] - whole["accuracy"])
        assert row["decode_tokens_per_second"] > 0
        choice = choose_engine(tmp_path / row["type"])
        assert choice.engine.name == "llama.cpp" and choice.format is None


def test_an_engine_that_answers_otherwise_is_not_passed(model, tmp_path, monkeypatch):
    if llama_cpp.LlamaCpp().version() is None:
        pytest.skip("llama.cpp is not installed: what it answers is not checked")
    read_back = quantize.read_back

    def read_wrongly(network, file):
        copy = read_back(network, file)
        with torch.no_grad():
            copy.lm_head.weight.mul_(-3)
        return copy

    monkeypatch.setattr(quantize, "read_back", read_wrongly)
    with pytest.raises(ModelError, match="answers otherwise once quantised"):
        quantize.make(model, "q8_0", SETTINGS, task_rows("heldout"), tmp_path / "q8_0")
    assert not list(tmp_path.iterdir())
