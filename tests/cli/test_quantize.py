"""The command quantize, and what check and plan say of the section."""

import json

import pytest

from hybridize.engines import llama_cpp
from tests.tiny_tasks import save_task_teacher


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch):
    monkeypatch.setattr(llama_cpp, "find_program", lambda: None)
    monkeypatch.setattr(llama_cpp, "find_package_version", lambda: None)


@pytest.fixture
def small(tmp_path):
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    return save_task_teacher(tmp_path / "small", layers=2)


SET = ("--set", "quantize.tokens=256", "--set", "data.sequence_length=128")


def test_each_type_gets_a_folder_and_the_table_is_printed(call, small, tmp_path):
    out, err = call("quantize", small, "--types", "q8_0, q4_0", "--out", "out", *SET)
    assert out.splitlines()[0] == "small  AA"
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["unquantised", "q8_0", "q4_0"]
    assert "scores and speed are not measured: llama.cpp is not installed" in out
    assert err.startswith("q8_0: ") and "nats per token" in err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["q4_0", "q8_0", "quantize.csv", "quantize.json", "quantize.md"]


def test_the_table_can_be_json_and_a_folder_is_taken_by_serve(call, small):
    out, _ = call("quantize", small, "--types", "q8_0", "--out", "out", "--json", *SET)
    assert [row["type"] for row in json.loads(out)["rows"]] == ["unquantised", "q8_0"]
    _, err = call("serve", "out/q8_0", "--engine", "llama.cpp", code=3)
    assert "llama.cpp is not installed" in err


def test_an_unknown_type_is_refused_before_anything_is_loaded(call, tmp_path):
    _, err = call("quantize", "nowhere", "--types", "q4", "--out", "out", code=2)
    assert "'q4' is not a type of weights. Did you mean q4_1" in err
    assert not (tmp_path / "out").exists()


def test_check_and_plan_tell_what_is_quantised(call, teacher):
    asked = ("--set", f"teacher.model={teacher}", "--set", "quantize.types=[q8_0, q4_0]")
    told = "merge to q8_0, q4_0; KL on 32.8k held-out tokens, 100 problems of each kind"
    assert told in call("check", "tiny", *asked)[0]
    assert told in call("plan", "tiny", *asked)[0]
