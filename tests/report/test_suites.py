"""What the suites found is in the report: paired tests, heat map, curves, named layers."""

from pathlib import Path

from hybridize.core.artifacts import read_json, write_json, write_result
from hybridize.report import build_report
from hybridize.report.figures import heat
from hybridize.report.run_data import read_run
from tests.report.fake_run import write_run

PAIR = {
    "num_problems": 100, "both": 80, "only_model": 2, "only_other": 11, "neither": 7,
    "difference": -0.09, "standard_error": 0.034, "low": -0.16, "high": -0.03, "p_value": 0.022,
}  # fmt: skip


def write_suites(folder: Path) -> Path:
    write_run(folder)
    path = folder / "eval" / "h7.json"
    groups = [
        {"kind": "sort", "by": "difficulty", "value": 3, "accuracy": 0.7, "standard_error": 0.1,
         "num_problems": 20}
    ]  # fmt: skip
    paired = {"other": "teacher", "overall": PAIR, "kinds": {"sort": PAIR}}
    write_json(path, {**read_json(path), "paired": paired, "groups": groups})
    cells = [
        {"prompt_length": length, "depth": depth, "accuracy": 1 - depth * length / 1000,
         "standard_error": 0.1, "num_problems": 10}
        for length in (64, 512) for depth in (0.0, 0.5, 1.0)
    ]  # fmt: skip
    write_json(folder / "eval" / "recall" / "h7.json", {"model": "h7", "cells": cells})
    found = [{**cell, "accuracy": 1.0, "standard_error": 0.0} for cell in cells]
    write_json(folder / "eval" / "recall" / "teacher.json", {"model": "teacher", "cells": found})
    rows = [
        {"by": by, "value": value, "tokens": 100, "forward_kl": 0.01 * (value or 3.0),
         "reverse_kl": 0.02, "forward_kl_error": 0.001, "reverse_kl_error": 0.001, "top1": 0.98,
         "top1_error": 0.001}
        for by, value in (
            ("position", 16.0), ("position", 32.0), ("entropy", 0.1), ("entropy", None)
        )
    ]  # fmt: skip
    write_json(folder / "eval" / "agreement" / "h7.json", {"model": "h7", "rows": rows})
    layer = {
        "layer": 5, "mixer": "mamba2", "output_share": 0.0, "contribution_nats": 0.0,
        "memory": {"median_tokens": 40.5, "state_rank": 0.4}, "own_error": 1.0, "error": 0.8,
        "error_by_position": {"16": 0.8}, "zero_tensors": [],
    }  # fmt: skip
    diagnosis = {"layers": [layer], "findings": ["layer 5 (mamba2): it hardly works."]}
    write_json(folder / "eval" / "diagnosis" / "h7.json", diagnosis)
    write_sweep(folder)
    write_export(folder)
    return folder


def write_sweep(folder: Path) -> None:
    kinds = read_json(folder / "eval" / "sft.json")["kinds"]
    tried = [
        {"weight": weight, "kinds": kinds, "overall": {**kinds["sort"], "accuracy": 0.8 + weight}}
        for weight in (0.0, 0.1, 0.5)
    ]
    values = {"models": ["sft", "h7"], "tried": tried}
    write_result(
        folder / "merge/sweep", "merge/sweep", settings={}, inputs={}, values=values, seconds=1.0
    )


def write_export(folder: Path) -> None:
    check = {"reader": "transformers", "deviation": 2e-6, "allowed": 1e-4, "same": 5,
             "num_prompts": 5, "is_rounded": False}  # fmt: skip
    found = {"dtype": "float32", "checks": [check], "not_checked": {"vllm": "it is not installed."}}
    write_json(folder / "export" / "stock" / "verification.json", found)


def test_the_report_shows_what_the_suites_found(tmp_path):
    folder = write_suites(tmp_path / "run")
    build_report(folder)
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert "Each model beside the teacher, problem by problem" in text
    assert "| h7 | sort | -0.0900 ± 0.0340 |" in text
    assert "layer 5 (mamba2): it hardly works." in text
    tables = {path.stem for path in (folder / "report" / "tables").iterdir()}
    expected = {"paired", "groups", "recall", "agreement", "agreement-entropy", "diagnosis"}
    assert expected | {"layer-errors", "merge-sweep", "exports"} <= tables
    agreement = (folder / "report" / "tables" / "agreement.csv").read_text()
    assert len(agreement.splitlines()) == 3, "by position alone"
    drawn = (folder / "report" / "figures" / "recall.svg").read_text()
    assert drawn.count(">0.49<") == 1
    assert "h7: lowest 0.49 at length 512, depth 100 %" in drawn
    entropy = (folder / "report" / "tables" / "agreement-entropy.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in entropy[1:]] == ["< 0.1", "≥ 0.1"]


def test_facts_that_are_lost_from_long_prompts_are_told_first(tmp_path):
    folder = write_suites(tmp_path / "run")
    for model in ("sft", "merge"):
        (folder / "eval" / f"{model}.json").unlink()
    text = build_report(folder, ["md"]).read_text(encoding="utf-8")
    told = "long prompts: 0.49 of the facts at 512 tokens, depth 100 % (teacher 1.00)"
    assert told in text.partition("## Importance")[0]


def test_the_sweep_marks_the_weight_of_the_merge(tmp_path):
    folder = write_suites(tmp_path / "run")
    build_report(folder)
    table = (folder / "report" / "tables" / "merge-sweep.csv").read_text().splitlines()
    means = [row for row in table if ",mean," in row]
    assert [row.rpartition(",")[2] for row in means] == ["False", "False", "True"]
    drawn = (folder / "report" / "figures" / "merge-sweep.svg").read_text()
    assert drawn.count('class="mamba"') == 1 and "1.30 at weight 0.5" in drawn


def test_scores_of_any_other_suite_stand_in_a_table(tmp_path):
    folder = write_suites(tmp_path / "run")
    scored = read_json(folder / "eval" / "h7.json")
    write_json(folder / "eval" / "full" / "h7.json", scored)
    task = {"task": "gsm8k", "metric": "exact_match", "value": 0.5, "standard_error": 0.1}
    write_json(folder / "eval" / "lm-eval-gsm8k" / "h7.json", {"model": "h7", "scores": [task]})
    text = build_report(folder, ["md"]).read_text(encoding="utf-8")
    assert "**Suite full**" in text and "| gsm8k (exact_match) | 0.500 ± 0.100 |" in text


def test_a_teacher_named_after_its_folder_is_the_teacher(tmp_path):
    folder = write_suites(tmp_path / "run")
    recall = folder / "eval" / "recall"
    (recall / "teacher.json").rename(recall / "shipped.json")
    assert list(read_run(folder).suites["recall"]) == ["teacher", "h7"]


def test_a_run_without_them_has_none(tmp_path):
    build_report(write_run(tmp_path / "run"))
    names = {path.stem for path in (tmp_path / "run" / "report").rglob("*.*")}
    assert not names & {"paired", "groups", "recall", "agreement", "diagnosis", "merge-sweep"}


def test_the_figures_are_the_same_twice():
    cell = {"model": "h1", "prompt_length": 64, "depth": 0.5, "accuracy": 0.5, "num_problems": 2}
    assert heat.heat_map([cell], 840) == heat.heat_map([cell], 840)
    row = {"model": "h1", "position": 16.0, "forward_kl": 0.1, "top1": 0.9}
    drawn = heat.agreement_curves([row, {**row, "position": 32.0}], 840)
    assert "h1, first and last group: 16: KL 0.100, same top token 0.900" in drawn
