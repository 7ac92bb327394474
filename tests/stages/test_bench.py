"""The bench counts the bytes that the plan counts, and every model at every length."""

import json

import pytest

from hybridize.core.artifacts import plain
from hybridize.core.shape import ModelShape
from hybridize.stages import bench
from hybridize.stages.bench import BenchSettings
from tests.tiny_tasks import task_student, task_teacher

SETTINGS = BenchSettings(context_tokens=(24, 8), output_tokens=3, batch=2, repeats=2)


@pytest.fixture(scope="module")
def models():
    teacher = task_teacher()
    students = [task_student(teacher, strip, name=strip) for strip in ("AMAM", "MMMM")]
    return [teacher, *students]


@pytest.fixture(scope="module")
def measured(models, tmp_path_factory):
    out, told = tmp_path_factory.mktemp("bench"), []
    found = bench.run(models, SETTINGS, out, progress=lambda *counts: told.append(counts))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert json.loads((out / "bench.json").read_text()) == plain(found)
    return found


def test_cache_bytes_equal_those_of_the_plan(models, measured):
    for model, speeds in zip(models, measured.models, strict=True):
        shape = ModelShape.from_config(model.network.config.teacher.to_dict())
        for row in speeds.rows:
            planned = shape.cache_bytes(model.layout, row.context_tokens, bytes_per_value=4)
            assert row.cache_bytes == SETTINGS.batch * planned


def test_memory_grows_with_attention_only(measured):
    grown = [speeds.rows[1].cache_bytes - speeds.rows[0].cache_bytes for speeds in measured.models]
    assert grown[0] == 2 * grown[1] > 0
    assert grown[2] == 0


def test_every_model_is_measured_at_every_length(models, measured):
    assert [(one.model, one.layout) for one in measured.models] == [
        ("teacher", "AAAA"), ("AMAM", "AMAM"), ("MMMM", "MMMM"),
    ]  # fmt: skip
    for speeds in measured.models:
        assert [row.context_tokens for row in speeds.rows] == [8, 24]
        for row in speeds.rows:
            assert row.prefill_tokens_per_second > 0
            per_step = row.seconds_per_token * row.decode_tokens_per_second
            assert per_step == pytest.approx(SETTINGS.batch)
    assert (measured.batch, measured.output_tokens, measured.dtype) == (2, 3, "float32")


def test_the_table_has_a_line_a_point(measured):
    head, names, *lines = str(measured).splitlines()
    assert "batch 2" in head
    assert names.split() == ["model", "context", "prefill", "decode", "x", "cache", "KiB"]
    assert len(lines) == 6
    assert lines[0].split()[4] == lines[1].split()[4] == "1.00"
