"""The run folder is written whole or not at all, and done is told from stale."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from hybridize.core.artifacts import (
    RunFolder,
    changed_keys,
    cut_half_line,
    hash_file,
    hash_json,
    read_json,
    read_jsonl,
    read_result,
    write_json,
    write_result,
    write_text,
)
from hybridize.core.errors import MachineError, RunError


@dataclass(frozen=True)
class Settings:
    lr: float
    betas: tuple[float, float]
    out: Path


def test_paths_of_the_run_folder():
    run = RunFolder(Path("runs/h12"))
    assert run.stage(0, "h4") == Path("runs/h12/stages/01-h4")
    assert run.importance("replace_one-h8") == Path("runs/h12/importance/replace_one-h8.json")
    assert run.eval("teacher") == Path("runs/h12/eval/teacher.json")


def test_a_full_disk_leaves_what_stood_before(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(MachineError, match="No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_others_may_read_what_was_written_as_far_as_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "result.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "result.json").stat().st_mode & 0o777 == 0o640


def test_not_a_number_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(RunError, match=r"a\.json does not exist"):
        read_json(tmp_path / "a.json")
    write_text(tmp_path / "a.json", "{")
    with pytest.raises(RunError, match=r"a\.json is not JSON"):
        read_json(tmp_path / "a.json")


def test_a_half_line_is_left_out_and_can_be_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [record["step"] for record in read_jsonl(path)] == [1, 2]
    cut_half_line(path)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert list(read_jsonl(tmp_path / "none.jsonl")) == []


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n?\n')
    with pytest.raises(RunError, match="line 2"):
        list(read_jsonl(path))


def test_a_result_reads_back_and_its_settings_compare(tmp_path):
    settings = Settings(lr=3e-4, betas=(0.9, 0.95), out=tmp_path)
    inputs = {"teacher": "abc"}
    written = write_result(
        tmp_path, "h8", settings=settings, inputs=inputs, values={"layers": (1, 2)}, seconds=2.5
    )
    read = read_result(tmp_path)
    assert read == written
    assert read.values == {"layers": [1, 2]}
    assert read.settings_hash == hash_json(settings)
    assert read_result(tmp_path / "elsewhere") is None


def test_changed_keys_are_dotted_and_ignore_tuples_for_lists():
    old = {"optimizer": {"lr": 3e-4, "betas": [0.9, 0.95]}, "tokens": 1}
    new = {"optimizer": {"lr": 1e-4, "betas": (0.9, 0.95)}, "dtype": "float32"}
    assert changed_keys(old, new) == [
        ("optimizer.lr", 3e-4, 1e-4),
        ("tokens", 1, None),
        ("dtype", None, "float32"),
    ]


def test_hashes_follow_the_content(tmp_path):
    assert hash_json({"a": 1, "b": (2,)}) == hash_json({"b": [2], "a": 1}) != hash_json({"a": 1})
    write_text(tmp_path / "x", "abc")
    assert hash_file(tmp_path / "x").startswith("ba7816bf")
    with pytest.raises(RunError, match="does not exist"):
        hash_file(tmp_path / "y")
