"""Runs cut short at every point, and files cut in the middle: a page, and a sentence for each."""

import shutil
from pathlib import Path

import pytest

from hybridize.core.artifacts import read_json, write_json
from hybridize.report import build_report, verdict
from hybridize.report.run_data import read_run
from tests.report.test_suites import write_suites

ORDER = (
    ("recipe.yaml", "recipe.resolved.yaml", "environment.json", "status.json"),
    ("teacher.json",),
    ("importance/leave_one_out.json",),
    ("eval/teacher.json", "eval/recall/teacher.json"),
    ("plan.json",),
    ("stages/01-h4/metrics.jsonl",),
    ("stages/01-h4/result.json",),
    ("eval/h4.json",),
    ("importance/replace_one-h7.json",),
    ("stages/02-h7/metrics.jsonl",),
    ("stages/02-h7/result.json",),
    ("eval/h7.json", "eval/recall/h7.json", "eval/agreement/h7.json", "eval/diagnosis/h7.json"),
    ("sft/metrics.jsonl", "sft/result.json"),
    ("eval/sft.json",),
    ("merge/result.json",),
    ("eval/merge.json",),
    ("merge/sweep/result.json",),
    ("bench/bench.json",),
    ("export/stock/verification.json",),
)
"""The files of a run, in the order in which they are written."""
MISSING = (
    ("teacher.json", None, "No layout is known yet"),
    ("importance/leave_one_out.json", None, "No importance has been measured yet"),
    ("plan.json", None, "No stage has been trained yet"),
    ("stages/01-h4/result.json", "plan.json", "Not finished yet: h4, h7."),
    ("eval/teacher.json", None, "No model has been evaluated yet"),
    ("eval/h4.json", None, "Two evaluated models are needed"),
    ("eval/teacher.json", None, "Retrieval from long prompts has not been measured"),
    ("eval/h7.json", None, "Agreement on held-out text has not been measured"),
    ("eval/h7.json", None, "Layers have not been diagnosed"),
    ("merge/result.json", None, "No models have been merged"),
    ("eval/merge.json", "merge/result.json", "Not all of these have been evaluated yet"),
    ("merge/sweep/result.json", "merge/result.json", "Other weights have not been tried"),
    ("bench/bench.json", None, "Nothing has been timed yet"),
    ("bench/bench.json", None, "Score against speed is not there yet"),
    ("export/stock/verification.json", None, "Nothing has been exported"),
)
"""What a report says as long as the first file is not there, from the second on."""
JSONS = [name for group in ORDER for name in group if name.endswith(".json")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_suites(tmp_path_factory.mktemp("whole") / "run")
    for group in ORDER:
        for name in group:
            assert (folder / name).is_file(), name
    return folder


@pytest.mark.parametrize("steps", range(1, len(ORDER) + 1), ids=lambda n: ORDER[n - 1][0])
def test_a_run_cut_after_any_step_has_a_page(whole: Path, tmp_path: Path, steps: int) -> None:
    for name in (name for group in ORDER[:steps] for name in group):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole / name, tmp_path / name)
    status = read_json(tmp_path / "status.json")
    for node in status["nodes"][steps // 3 :]:
        node |= {"state": "to do", "seconds": None}
    write_json(tmp_path / "status.json", status)
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert "nan" not in page and "None" not in page
    assert verdict(tmp_path)
    there = {name for group in ORDER[:steps] for name in group}
    for name, since, sentence in MISSING:
        is_due = name not in there and (since is None or since in there)
        assert (sentence in page) == is_due, sentence


@pytest.mark.parametrize("name", JSONS)
def test_a_damaged_file_is_named_and_left_out(whole: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(whole, copy)
    text = (copy / name).read_text()
    (copy / name).write_text(text[: len(text) // 2])
    page = build_report(copy).read_text(encoding="utf-8")
    assert f"{name} is damaged and left out: it is not whole JSON." in page
    assert page.count("is damaged") == 1
    assert verdict(copy)


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_files_that_hold_nothing_do_no_harm(whole: Path, tmp_path: Path, text: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(whole, copy)
    for name in JSONS:
        (copy / name).write_text(text)
    assert "Not finished" in verdict(copy)
    assert "is damaged" in build_report(copy).read_text(encoding="utf-8")


def test_a_line_of_metrics_that_is_not_json_ends_the_curve_there(
    whole: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(whole, copy)
    path = copy / "stages/01-h4/metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:50], "{", *lines[51:]]) + "\n")
    assert len(read_run(copy).stages[0].metrics) == 50
    page = build_report(copy).read_text(encoding="utf-8")
    assert "metrics.jsonl is damaged and left out: line 51 is not JSON" in page


def test_the_folder_of_an_evaluation_that_is_not_done_is_no_suite(
    whole: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(whole, copy)
    (copy / "eval/h4.json").unlink()
    write_json(copy / "eval/h4/begun.json", {"settings": {}, "inputs": {}})
    run = read_run(copy)
    assert "h4" not in run.suites and run.damaged == ()
