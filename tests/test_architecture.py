"""The house plan, enforced: who imports whom, how long things are, what starts fast."""

import ast
import functools
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hybridize"
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

MAY_IMPORT = {
    "core": {"core"},
    "tasks": {"tasks", "core"},
    "ops": {"ops"},
    "models": {"models", "core", "ops"},
    "engines": {"engines", "core"},
    "exports": {"exports", "core", "models", "engines"},
    "vllm_plugin": {"vllm_plugin", "core", "ops"},
    "serving": {"serving", "core", "ops", "engines", "models", "training"},
    "surgery": {"surgery", "core", "models"},
    "training": {"training", "core", "ops", "tasks"},
    "evaluation": {"evaluation", "core", "models", "tasks", "engines"},
    "stages": {
        "core",
        "ops",
        "models",
        "surgery",
        "training",
        "evaluation",
        "tasks",
        "exports",
        "engines",
    },
    "report": {"report", "core"},
    "pipeline": {"pipeline", "core", "stages", "report", "models", "surgery", "training"},
    "api": {
        *("core", "models", "surgery", "training", "evaluation", "stages", "pipeline", "report"),
    },
    "cli": {
        *("cli", "core", "ops", "models", "engines", "serving", "exports"),
        *("stages", "pipeline", "report", "api", "evaluation"),
    },
}
"""Room -> rooms it may import, function-level imports included; stages not even each other."""

WITHOUT_TORCH = {"core", "tasks", "report", "engines"}
TORCH = {"torch", "transformers", "safetensors", "tokenizers", "numpy"}
SECONDS_TO_START = 0.3
LIBRARIES = "import typer; from pydantic import AfterValidator, Field, TypeAdapter"
SECONDS_OF_LIBRARIES = 0.145
"""Of importing them alone, on the machine where the limit above is meant."""
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 12,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def list_imports(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_rooms(names: set[str]) -> set[str]:
    rooms = {name.split(".")[1] for name in names if name.startswith("hybridize.")}
    return {
        room for room in rooms if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").exists()
    }


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def trees():
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_only_what_the_plan_allows(path, trees):
    room = room_of(path)
    if room.startswith("__"):
        return
    names = list_imports(trees[path])
    assert imported_rooms(names) <= MAY_IMPORT[room]
    if room in WITHOUT_TORCH:
        assert not TORCH & {name.split(".")[0] for name in names}
    if room == "stages":
        assert not [name for name in names if name.startswith("hybridize.stages.")]


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_opens_with_one_sentence(path, trees):
    text = ast.get_docstring(trees[path])
    assert text, "no docstring"
    assert text.partition("\n\n")[0].rstrip().endswith((".", ":", "?")), text.partition("\n\n")[0]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_device_file_names_an_accelerator(path, trees):
    if path.relative_to(PACKAGE).as_posix() == "training/device.py":
        return
    words = [
        node.value
        for node in ast.walk(trees[path])
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert "cuda" not in words
    assert not [word for word in words if word.startswith("cuda:")]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_environment_is_read_at_one_place(path, trees):
    if path.relative_to(PACKAGE).as_posix() == "core/settings.py":
        return
    for node in ast.walk(trees[path]):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("environ", "getenv", "putenv")


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=name_of)
def test_a_todo_has_a_number(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        mark = re.search(r"#\s*(TODO|FIXME|XXX)\b(.*)", line)
        assert mark is None or re.match(r"\(#\d+\)", mark[2]), line


def start(*arguments: str) -> tuple[float, subprocess.CompletedProcess]:
    """Run Python; return its processor seconds, which a busy machine does not stretch.

    Compiled modules are kept, as they are for a user from the second start on.
    """
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


@functools.cache
def seconds_to_start_here() -> float:
    """Return the limit: a slower machine has as much more as libraries alone take there."""
    libraries = min(start("-c", LIBRARIES)[0] for _ in range(5))
    return SECONDS_TO_START * max(1.0, libraries / SECONDS_OF_LIBRARIES)


def least_seconds_to_start(*arguments: str) -> float:
    """Start Python until it is fast enough, ten times at most: other work only adds."""
    least = float("inf")
    for _ in range(10):
        least = min(least, start(*arguments)[0])
        if least <= seconds_to_start_here():
            break
    return least


def imported(log: str) -> set[str]:
    lines = [line for line in log.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


STARTS = [
    ("-c", "import hybridize"),
    ("-c", "import hybridize; hybridize.load_recipe('tiny')"),
    ("-c", "import hybridize.report, hybridize.tasks"),
    ("-m", "hybridize", "--help"),
    ("-m", "hybridize", "check", "tiny", "--set", "teacher.model={teacher}"),
    ("-m", "hybridize", "run", "--help"),
    ("-m", "hybridize", "ls", "mixers"),
]


@pytest.mark.parametrize("arguments", STARTS, ids=" ".join)
def test_what_needs_no_model_starts_without_torch(arguments, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    arguments = [argument.format(teacher=tmp_path) for argument in arguments]
    _, traced = start("-X", "importtime", *arguments)
    assert traced.returncode == 0, traced.stderr[-500:]
    assert not TORCH & imported(traced.stderr)


@pytest.mark.parametrize("arguments", STARTS, ids=" ".join)
def test_what_needs_no_model_starts_fast(arguments, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    arguments = [argument.format(teacher=tmp_path) for argument in arguments]
    seconds = least_seconds_to_start(*arguments)
    assert seconds <= seconds_to_start_here(), f"{seconds:.2f} s"


def test_public_names_exist():
    import hybridize

    for name in hybridize._NAMES:
        assert getattr(hybridize, name) is not None
    assert set(hybridize._NAMES) <= set(dir(hybridize))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hybridize.nothing
