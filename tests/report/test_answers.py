"""The first minute: which model to pick and why, and the four answers."""

import csv
from pathlib import Path

import pytest

from hybridize.core.artifacts import read_json, write_json
from hybridize.report import build_report
from hybridize.report.answers import answers_table, pick, pick_words
from hybridize.report.run_data import read_run
from tests.report.fake_run import write_run
from tests.report.test_suites import write_suites

SCORES = {"h4": 0.90, "h7": 0.89, "sft": 0.80, "merge": 0.80}


def _score(folder: Path, scores: dict[str, float], error: float = 0.01) -> None:
    for model, accuracy in scores.items():
        path = folder / "eval" / f"{model}.json"
        value = read_json(path)
        value["overall"] |= {"accuracy": accuracy, "standard_error": error}
        write_json(path, value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = write_run(tmp_path)
    _score(folder, SCORES)
    return folder


def test_the_fastest_of_the_students_near_the_best_is_picked(folder: Path) -> None:
    words = pick_words(read_run(folder))
    assert words == (
        "Pick h7: its score cannot be told from the best (within 2 standard errors, as those of "
        "h4), and it is the fastest of these."
    )
    _score(folder, {"h7": 0.85})
    assert pick_words(read_run(folder)).startswith(
        "Pick h4: every other student scores clearly lower, or in another suite. "
        "Faster, but clearly lower in score or in another suite: h7 (1."
    )


def test_a_student_that_is_beaten_in_another_suite_is_not_picked(folder: Path) -> None:
    for model, accuracy in {"h4": 0.9, "h7": 0.8}.items():
        whole = {"accuracy": accuracy, "standard_error": 0.01, "num_problems": 100}
        found = {"model": model, "kinds": {}, "overall": whole}
        write_json(folder / "eval" / "full" / f"{model}.json", found)
    words = pick_words(read_run(folder))
    assert words.startswith("Pick h4: ") and "in another suite: h7 (1." in words
    table = answers_table(read_run(folder))
    assert [column.heading for column in table.columns[1:]] == ["merge, last made", "h4, to pick"]


def test_of_equally_fast_ones_the_better_is_picked(folder: Path) -> None:
    _score(folder, {"sft": 0.895})
    assert pick(read_run(folder)).name == "sft"


def test_without_a_bench_the_best_score_decides(folder: Path) -> None:
    (folder / "bench" / "bench.json").unlink()
    assert "Pick h4: " in pick_words(read_run(folder))
    assert "nothing was timed, so the best score decides" in pick_words(read_run(folder))


def test_the_only_student_and_none(folder: Path) -> None:
    for model in ("h7", "sft", "merge"):
        (folder / "eval" / f"{model}.json").unlink()
    assert pick_words(read_run(folder)) == "Pick h4: the only student evaluated so far."
    (folder / "eval" / "h4.json").unlink()
    assert pick_words(read_run(folder)) is None
    assert answers_table(read_run(folder)) is not None, "the last model made is still told of"


def test_long_prompts_may_speak_against_the_pick(tmp_path: Path) -> None:
    folder = write_suites(tmp_path / "run")
    _score(folder, SCORES)
    assert pick_words(read_run(folder)).endswith("speak against it, see what was lost.")


def test_the_four_answers_of_the_last_model_and_of_the_pick(folder: Path) -> None:
    build_report(folder)
    text = (folder / "report" / "tables" / "answers.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert list(rows[0]) == ["question", "merge", "h7"]
    assert rows[0]["h7"] == rows[0]["merge"] == "3-5, 7-10 (7 of 12)"
    assert rows[1]["h7"] == "5M tokens, 7.5 m of training on cpu", "h4 and h7"
    assert rows[1]["merge"] == "6M tokens, 9.47 m of training on cpu", "and sft"
    assert "of the score is kept; " in rows[2]["h7"]
    assert rows[3]["question"] == "How fast, teacher = 1? (context 4,096, batch 4)"
    assert rows[3]["h7"].startswith("decode 1.") and "cache 0.4" in rows[3]["h7"]
