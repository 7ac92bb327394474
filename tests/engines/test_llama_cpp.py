"""The adapter of llama.cpp without llama.cpp: what it says, and how it would start it."""

import sys
from types import SimpleNamespace

import pytest

from hybridize.core.errors import MachineError, ModelError
from hybridize.engines import ServeSettings, find_engine
from hybridize.engines import llama_cpp as adapter
from hybridize.engines import llama_cpp_package as package


def pretend_program(monkeypatch, tmp_path, says="version: 1.2.3 (build 7)"):
    program = tmp_path / "llama-server"
    program.write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("HYBRIDIZE_LLAMA_SERVER", str(program))
    return program


def pretend_file(folder, context=128):
    """Write the least of a GGUF: two keys, no tensors."""

    def text(value):
        return len(value).to_bytes(8, "little") + value

    keys = [
        text(b"general.architecture") + (8).to_bytes(4, "little") + text(b"llama"),
        text(b"llama.context_length") + (4).to_bytes(4, "little") + context.to_bytes(4, "little"),
    ]
    head = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + len(keys).to_bytes(8, "little")
    path = folder / "model.gguf"
    path.write_bytes(head + b"".join(keys))
    return path


@pytest.fixture
def nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("HYBRIDIZE_LLAMA_SERVER", str(tmp_path / "none"))
    monkeypatch.setattr(adapter, "find_package_version", lambda: None)


def test_without_it_the_ways_to_get_it_are_named(nothing, tmp_path):
    engine = find_engine("llama.cpp")
    assert engine.version() is None
    assert "pip install xllamacpp" in engine.why_not(tmp_path)
    with pytest.raises(MachineError, match="HYBRIDIZE_LLAMA_SERVER"):
        engine.command(ServeSettings(model=tmp_path, port=1))


def test_the_program_that_the_setting_names_is_asked_for_its_version(monkeypatch, tmp_path):
    pretend_program(monkeypatch, tmp_path)
    assert find_engine("llama.cpp").version() == "llama-server 1.2.3 (build 7)"


def test_each_sequence_gets_the_whole_context(monkeypatch, tmp_path):
    program = pretend_program(monkeypatch, tmp_path)
    file = pretend_file(tmp_path)
    settings = ServeSettings(model=tmp_path, port=8123, max_sequences=3, threads=1, api_key="k")
    command = find_engine("llama.cpp").command(settings)
    argv = command.argv
    assert argv[0] == str(program)
    assert argv[argv.index("--model") + 1] == str(file)
    assert argv[argv.index("--ctx-size") + 1] == str(3 * 128)
    assert argv[argv.index("--cache-type-k") + 1] == "f32"
    assert "--no-cache-prompt" in argv
    assert "k" not in argv
    assert command.environment["LLAMA_API_KEY"] == "k"


def test_narrow_types_take_a_narrow_cache_and_prefixes_are_kept_on_request(monkeypatch, tmp_path):
    pretend_program(monkeypatch, tmp_path)
    settings = ServeSettings(
        model=pretend_file(tmp_path), port=1, dtype="bfloat16", reuse_prefixes=True, threads=2
    )
    argv = find_engine("llama.cpp").command(settings).argv
    assert argv[argv.index("--cache-type-v") + 1] == "f16"
    assert argv[argv.index("--threads-batch") + 1] == "2"
    assert "--no-cache-prompt" not in argv


def test_the_package_is_started_with_this_python_where_there_is_no_program(
    nothing, monkeypatch, tmp_path
):
    monkeypatch.setattr(adapter, "find_package_version", lambda: "xllamacpp 1")
    engine = find_engine("llama.cpp")
    argv = engine.command(ServeSettings(model=pretend_file(tmp_path), port=5)).argv
    assert argv[:3] == (sys.executable, "-m", "hybridize.engines.llama_cpp_package")
    options = package.make_parser().parse_args(argv[3:])
    assert (options.port, options.ctx_size, options.no_cache_prompt) == (5, 8 * 128, True)


def test_the_options_become_the_parameters_of_the_package(monkeypatch):
    monkeypatch.setenv("HYBRIDIZE_API_KEY", "k")
    names = SimpleNamespace
    stand_in = names(
        CommonParams=lambda: names(
            model=names(path=""), cpuparams=names(n_threads=0), cpuparams_batch=names(n_threads=0)
        ),
        ggml_type=names(GGML_TYPE_F32="f32", GGML_TYPE_F16="f16"),
        llama_flash_attn_type=names(
            LLAMA_FLASH_ATTN_TYPE_DISABLED="off", LLAMA_FLASH_ATTN_TYPE_AUTO="auto"
        ),
        common_reasoning_format=names(COMMON_REASONING_FORMAT_NONE="none"),
    )
    line = "--model m --port 1 --parallel 2 --ctx-size 3 --threads 4 --threads-batch 5"
    options = package.make_parser().parse_args([*line.split(), "--cache-type-k", "f32"])
    made = package.fill_parameters(stand_in, options)
    assert (made.model.path, made.n_parallel, made.n_ctx, made.port) == ("m", 2, 3, 1)
    assert (made.cpuparams.n_threads, made.cpuparams_batch.n_threads) == (4, 5)
    assert (made.cache_type_k, made.cache_type_v, made.ui) == ("f32", "f16", False)
    assert made.api_keys == ["k"]


def test_a_folder_must_have_one_file(monkeypatch, tmp_path):
    pretend_program(monkeypatch, tmp_path)
    engine = find_engine("llama.cpp")
    assert "--format gguf" in engine.why_not(tmp_path)
    assert "does not exist" in engine.why_not(tmp_path / "none.gguf")
    file = pretend_file(tmp_path)
    assert engine.why_not(tmp_path) is engine.why_not(file) is None
    (tmp_path / "other.gguf").write_bytes(b"....")
    assert "2 GGUF files" in engine.why_not(tmp_path)
    assert "not a GGUF" in engine.why_not(tmp_path / "other.gguf")
    with pytest.raises(ModelError, match="2 GGUF files"):
        engine.command(ServeSettings(model=tmp_path, port=1))


def test_busy_cores_get_no_threads(monkeypatch):
    monkeypatch.setattr(adapter.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for load, free in ((0.2, 8), (3.1, 5), (20.0, 1)):
        monkeypatch.setattr(adapter.os, "getloadavg", lambda load=load: (load, 0, 0))
        assert adapter.count_free_cores() == free
