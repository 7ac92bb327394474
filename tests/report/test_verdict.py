"""The verdict, the warnings, the comparison of runs, and the model card."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from hybridize.core.artifacts import read_json, write_json
from hybridize.core.errors import RunError
from hybridize.report import build_comparison, model_card, rows_training, verdict
from hybridize.report.rows import pareto_table
from hybridize.report.rows_scores import disagreements
from hybridize.report.run_data import read_run
from tests.report.fake_run import write_run


def _score(folder: Path, model: str, accuracy: float, error: float) -> None:
    path = folder / "eval" / f"{model}.json"
    value = read_json(path)
    value["overall"] |= {"accuracy": accuracy, "standard_error": error}
    write_json(path, value)


def _decode(folder: Path, speeds: dict[str, float]) -> None:
    path = folder / "bench" / "bench.json"
    value = read_json(path)
    for model in value["models"]:
        model["rows"] = [row for row in model["rows"] if row["context_tokens"] == 1024]
        if model["model"] in speeds:
            model["rows"][0]["decode_tokens_per_second"] = speeds[model["model"]]
    write_json(path, value)


def test_the_verdict_states_layers_score_speed_and_load(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    _score(folder, "teacher", 0.90, 0.009)
    _score(folder, "merge", 0.882, 0.0)
    _decode(folder, {"teacher": 100.0, "merge": 190.0})
    assert verdict(folder) == (
        "7 of 12 layers converted keep 0.98 ± 0.01 of the teacher's score at 1.90x its decode "
        "speed (batch 4, context 1,024)."
    )


def test_the_verdict_says_where_the_student_is_slower(run_folder: Path) -> None:
    assert verdict(run_folder).endswith("context 4,096; 0.87x at context 64).")


def test_the_verdict_speaks_of_the_last_model_that_was_evaluated(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    for model in ("merge", "sft", "h7"):
        (folder / "eval" / f"{model}.json").unlink()
    assert verdict(folder).startswith("4 of 12 layers converted keep")
    shutil.rmtree(folder / "eval")
    shutil.rmtree(folder / "bench")
    assert verdict(folder) == ("7 of 12 layers converted, not yet evaluated beside the teacher.")
    row = {"by": "completion", "value": None, "tokens": 100, "top1": 0.975, "reverse_kl": 0.0312}
    write_json(folder / "eval/agreement/merge.json", {"model": "merge", "rows": [row]})
    assert verdict(folder) == (
        "7 of 12 layers converted: the likeliest next token is the teacher's at 97.5 % of held-out "
        "places, KL 0.0312 nats a token."
    )


def test_agreement_stands_for_the_score_where_no_problem_was_asked(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    assert pareto_table(read_run(folder)).columns[2].heading == "mean score"
    for path in (folder / "eval").glob("*.json"):
        path.unlink()
    assert len(pareto_table(read_run(folder)).rows) == 1
    row = {"by": "completion", "value": None, "tokens": 100, "top1": 0.97, "top1_error": 0.01,
           "reverse_kl": 0.03}  # fmt: skip
    write_json(folder / "eval/agreement/h7.json", {"model": "h7", "rows": [row]})
    table = pareto_table(read_run(folder))
    assert table.columns[2].heading == "the teacher's likeliest token"
    assert [(row["model"], row["score"]) for row in table.rows] == [("teacher", 1.0), ("h7", 0.97)]


def _likelihood_row(model: str, likelihood: float, accuracy: float) -> dict:
    return {
        "model": model, "log_likelihood": likelihood, "accuracy": accuracy, "standard_error": 0.01,
    }  # fmt: skip


def test_likelihood_and_accuracy_that_disagree_are_warned_of(tmp_path: Path) -> None:
    rows = tuple(_likelihood_row(*row) for row in [("a", -0.1, 0.8), ("b", -0.2, 0.9)])
    assert disagreements(rows) == [("a", "b", True)]
    rows = tuple(_likelihood_row(*row) for row in [("a", -0.1, 0.8), ("b", -0.2, 0.805)])
    assert disagreements(rows) == [("a", "b", False)]
    rows = tuple(_likelihood_row(*row) for row in [("a", -0.1, 0.9), ("b", -0.2, 0.8)])
    assert disagreements(rows) == []


def test_the_page_warns_when_rankings_disagree(run_folder: Path) -> None:
    page = (run_folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "<strong>Warning.</strong> Log-likelihood and generated answers rank" in page


def test_a_stage_that_branches_off_starts_at_the_tokens_of_its_start(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (folder / "stages/02-h7/result.json").unlink()
    plan = read_json(folder / "plan.json")
    for start_from, tokens in (("h4", 2_000_000), ("teacher", 0)):
        plan["stages"][1]["start_from"] = start_from
        write_json(folder / "plan.json", plan)
        table = rows_training.distillation_table(read_run(folder))
        assert {row["stage_start"] for row in table.rows if row["stage"] == "h7"} == {tokens}


def test_another_loss_is_not_drawn_as_reverse_kl(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    path = folder / "stages/01-h4/metrics.jsonl"
    line = {"step": 1, "tokens": 5000, "loss": 3.0, "parts": {"forward_kl": 3.0}}
    path.write_text(json.dumps(line) + "\n")
    table = rows_training.distillation_table(read_run(folder))
    first = [row for row in table.rows if row["stage"] == "h4"]
    assert all(row.get("train") is None for row in first) and len(first) == 2


def test_long_series_are_thinned_but_keep_the_spike(run_folder: Path) -> None:
    table = rows_training.distillation_table(read_run(run_folder))
    train = [row for row in table.rows if row["stage"] == "h4" and row.get("train") is not None]
    assert 50 < len(train) <= rows_training.MAX_POINTS + 10
    assert train[0]["cumulative_tokens"] == 5000


def test_runs_are_compared_side_by_side(run_folder: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", name="h7b", noise_seed=5)
    page = build_comparison([run_folder, other], tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "out" / "index.html"
    assert "<h1>h7 / h7b</h1>" in text and "h7b merge · 6M" in text
    assert "+# made with noise 5" in text
    twins = build_comparison([run_folder, write_run(tmp_path / "h7x")], tmp_path / "twins")
    assert "<h1>h7 / h7x</h1>" in twins.read_text(encoding="utf-8")
    with pytest.raises(RunError, match="at least two"):
        build_comparison([run_folder], tmp_path)


def test_unfinished_runs_can_be_compared(run_folder: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(run_folder / "teacher.json", begun)
    page = build_comparison([run_folder, begun], tmp_path / "out")
    assert "Not finished: no student" in page.read_text(encoding="utf-8")


def test_the_card_has_metadata_scores_and_the_recipe(run_folder: Path) -> None:
    card = model_card(run_folder, "merge")
    _, block, body = card.split("---\n", 2)
    metadata = yaml.safe_load(block)
    assert metadata["base_model"] == "tiny-teacher"
    assert {"hybridize", "hybrid", "mamba2"} <= set(metadata["tags"])
    results = metadata["model-index"][0]["results"]
    assert results[0]["dataset"]["name"] == "recall"
    assert "AAAMMMAMMM MA" in body
    assert "0.5 sft + 0.5 h7" in body
    assert "| mean | 0.957 ± 0.006 |" in body
    assert "from_pretrained" in body and "{name: h7, converted: 7, tokens: 3M}" in body


def test_the_card_of_a_hub_teacher_names_it_for_the_hub(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    teacher = read_json(folder / "teacher.json")
    write_json(folder / "teacher.json", {**teacher, "path": "org/model-1b", "license": "mit"})
    metadata = yaml.safe_load(model_card(folder, "h4").split("---\n", 2)[1])
    assert metadata["base_model"] == "org/model-1b" and metadata["license"] == "mit"


def test_the_card_of_an_unmeasured_model_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    shutil.rmtree(folder / "eval")
    shutil.rmtree(folder / "bench")
    card = model_card(folder, "h4")
    assert "has not been evaluated yet" in card and "has not been timed yet" in card
    with pytest.raises(RunError, match="no model 'h99'"):
        model_card(folder, "h99")
