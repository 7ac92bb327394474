"""The engine at hand is chosen, with reasons."""

from pathlib import Path

import pytest

from hybridize.core.errors import MachineError, ModelError, RecipeError
from hybridize.engines import choose
from hybridize.engines.choose import choose_engine


class Known:
    """An engine with fixed answers."""

    def __init__(self, name: str, reason: str | None, version: str | None = "1") -> None:
        self.name, self._reason, self._version = name, reason, version

    def version(self) -> str | None:
        return self._version

    def why_not(self, model: Path) -> str | None:
        return self._reason


@pytest.fixture
def engines(monkeypatch):
    """Set what each engine says."""
    found = {name: Known(name, None) for name in ("vllm", "llama.cpp", "hybridize")}
    monkeypatch.setattr(choose, "find_engine", found.__getitem__)
    monkeypatch.setattr(choose, "ACCELERATORS", ())
    return found


def test_llama_cpp_comes_first_without_a_gpu(engines, tmp_path):
    choice = choose_engine(tmp_path)
    assert (choice.engine.name, choice.format, choice.passed_over) == ("llama.cpp", None, {})
    assert "without a GPU" in choice.why


def test_vllm_comes_first_with_a_gpu(engines, tmp_path, monkeypatch):
    monkeypatch.setattr(choose, "ACCELERATORS", (str(tmp_path),))
    assert choose_engine(tmp_path).engine.name == "vllm"


def test_our_own_server_comes_last_and_the_reasons_are_told(engines, tmp_path):
    engines["llama.cpp"] = Known("llama.cpp", "it is not installed.", version=None)
    engines["vllm"] = Known("vllm", "it is not installed.", version=None)
    choice = choose_engine(tmp_path)
    assert choice.engine.name == "hybridize"
    assert choice.passed_over == dict.fromkeys(("llama.cpp", "vllm"), "it is not installed.")


def test_a_folder_is_written_for_an_engine_that_does_not_read_it(engines):
    pytest.importorskip("gguf")
    engines["llama.cpp"] = Known("llama.cpp", "there is no GGUF file.")
    shipped = Path(choose.__file__).parents[1] / "assets" / "teacher"
    choice = choose_engine(shipped)
    assert (choice.engine.name, choice.format) == ("llama.cpp", "gguf")


def test_an_asked_engine_that_cannot_says_why(engines, tmp_path):
    engines["vllm"] = Known("vllm", "it is not installed.", version=None)
    with pytest.raises(MachineError, match="engine vllm: it is not installed"):
        choose_engine(tmp_path, "vllm")
    engines["hybridize"] = Known("hybridize", "there is no config.json.")
    with pytest.raises(ModelError, match="no config"):
        choose_engine(tmp_path, "hybridize")


def test_where_no_engine_serves_all_reasons_are_told(engines, tmp_path):
    for name in engines:
        engines[name] = Known(name, f"{name} cannot.")
    with pytest.raises(ModelError, match=r"vllm cannot.*hybridize cannot"):
        choose_engine(tmp_path)


def test_an_unknown_engine_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="not an engine"):
        choose_engine(tmp_path, "sglang")


def test_an_engine_that_was_found_wanting_is_passed_over(engines, tmp_path):
    choice = choose_engine(tmp_path, excluded={"llama.cpp": "its tokenizer cannot be written."})
    assert choice.engine.name == "vllm"
    assert choice.passed_over == {"llama.cpp": "its tokenizer cannot be written."}


def test_a_missing_package_for_writing_is_named(engines, monkeypatch):
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    engines["llama.cpp"] = Known("llama.cpp", "there is no GGUF file.")
    shipped = Path(choose.__file__).parents[1] / "assets" / "teacher"
    assert "hybridize[gguf]" in choose_engine(shipped).passed_over["llama.cpp"]
