"""What the suites found is in the report: paired tests, heat map, curves, named layers."""

from pathlib import Path

from hybridize.core.artifacts import read_json, write_json
from hybridize.report import build_report
from hybridize.report.figures import heat
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
    rows = [
        {"by": by, "value": value, "tokens": 100, "forward_kl": 0.01 * value, "reverse_kl": 0.02,
         "forward_kl_error": 0.001, "reverse_kl_error": 0.001, "top1": 0.98, "top1_error": 0.001}
        for by, value in (("position", 16.0), ("position", 32.0), ("entropy", 0.1))
    ]  # fmt: skip
    write_json(folder / "eval" / "agreement" / "h7.json", {"model": "h7", "rows": rows})
    layer = {
        "layer": 5, "mixer": "mamba2", "output_share": 0.0, "contribution_nats": 0.0,
        "memory": {"median_tokens": 40.5, "state_rank": 0.4}, "own_error": 1.0, "error": 0.8,
        "error_by_position": {"16": 0.8}, "zero_tensors": [],
    }  # fmt: skip
    found = {"layers": [layer], "findings": ["layer 5 (mamba2): it hardly works."]}
    write_json(folder / "eval" / "diagnosis" / "h7.json", found)
    return folder


def test_the_report_shows_what_the_suites_found(tmp_path):
    folder = write_suites(tmp_path / "run")
    build_report(folder)
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert "Each model beside the teacher, problem by problem" in text
    assert "| h7 | sort | -0.0900 ± 0.0340 |" in text
    assert "layer 5 (mamba2): it hardly works." in text
    tables = {path.stem for path in (folder / "report" / "tables").iterdir()}
    assert {"paired", "groups", "recall-h7", "agreement", "diagnosis", "layer-errors-h7"} <= tables
    agreement = (folder / "report" / "tables" / "agreement.csv").read_text()
    assert len(agreement.splitlines()) == 3, "by position alone"
    drawn = (folder / "report" / "figures" / "recall-h7.svg").read_text()
    assert drawn.count(">0.49<") == 1 and "prompt_length 64, depth 0.0: 1.00." in drawn


def test_a_run_without_them_has_none(tmp_path):
    build_report(write_run(tmp_path / "run"))
    names = {path.stem for path in (tmp_path / "run" / "report").rglob("*.*")}
    assert not names & {"paired", "groups", "recall-h7", "agreement", "diagnosis"}


def test_the_figures_are_the_same_twice():
    cell = {"model": "h1", "prompt_length": 64, "depth": 0.5, "accuracy": 0.5, "num_problems": 2}
    assert heat.heat_map([cell], 840) == heat.heat_map([cell], 840)
    row = {"model": "h1", "position": 16.0, "forward_kl": 0.1, "top1": 0.9}
    drawn = heat.agreement_curves([row, {**row, "position": 32.0}], 840)
    assert "h1 below 16: KL 0.1000, top-1 0.9000." in drawn
