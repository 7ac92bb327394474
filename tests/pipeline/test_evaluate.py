"""Several suites in one run: what stops they are, where their results lie, what the plan says."""

import pytest

from hybridize.cli.options import list_facts
from hybridize.core.artifacts import read_json, read_result
from hybridize.core.errors import MachineError, RecipeError
from hybridize.core.plan import make_plan
from hybridize.core.recipe import load_recipe
from hybridize.core.shape import ModelShape
from hybridize.core.suites import HARNESS
from hybridize.pipeline import open_street, run_recipe
from hybridize.report import build_report
from tests.pipeline.small import run

SUITE = "tests.tiny_tasks:SHORT_KINDS"
SEVERAL = (
    f"evaluate.suite=[{SUITE}, recall, agreement]",
    "evaluate.limits={recall: 1, agreement: 1}",
    "evaluate.diagnose=true",
    "evaluate.every_stage=false",
)
STUDENTS = ("h2", "sft", "merge")


def test_a_run_folder_gets_the_results_of_every_suite(copied, recipe, finished):
    expected = {f"eval/{suite}/{name}" for suite in ("agreement", "diagnosis") for name in STUDENTS}
    expected |= {f"eval/recall/{name}" for name in ("teacher", *STUDENTS)}
    assert set(run(recipe, copied, *SEVERAL)) == expected
    for name in expected:
        assert (copied / f"{name}.json").exists() and read_result(copied / name) is not None
    assert (copied / "eval/h2.json").read_bytes() == (finished / "eval/h2.json").read_bytes()
    recall = read_json(copied / "eval/recall/merge.json")
    assert recall["suite"] == "recall" and len(recall["cells"]) == 25
    assert recall["paired"]["other"] == "teacher"
    agreed = read_json(copied / "eval/agreement/merge.json")
    assert (agreed["teacher"], agreed["documents"]) == ("teacher", 5)
    assert read_result(copied / "eval/agreement/merge").values["reverse_kl"] > 0
    assert read_json(copied / "eval/diagnosis/sft.json")["teacher"] == "teacher"
    build_report(copied, ("md",))
    report = (copied / "report" / "report.md").read_text()
    assert "Agreement with the teacher by position" in report
    assert "Facts found by length and depth" in report
    more = [*SEVERAL[:1], "evaluate.limits={recall: 1, agreement: 2}", *SEVERAL[2:]]
    states = open_street(load_recipe(recipe, more), copied).states()
    stale = {name for name, state in states.items() if state.kind == "stale"}
    assert stale == {f"eval/agreement/{name}" for name in STUDENTS}


def test_a_suite_that_compares_may_be_the_only_one(recipe, tmp_path):
    street = open_street(load_recipe(recipe, ["evaluate.suite=agreement"]), tmp_path)
    names = [node.name for node in street.nodes if node.name.startswith("eval/")]
    assert names == [f"eval/agreement/{name}" for name in ("h1", *STUDENTS)]
    assert street.node("eval/agreement/h1").needs == ("teacher", "h1")


def test_the_facts_of_a_recipe_name_every_suite_and_model(recipe):
    loaded = load_recipe(recipe, [*SEVERAL, f"evaluate.suite=[{SUITE}, {HARNESS}gsm8k, agreement]",
                                  "evaluate.limits={agreement: 1}"])  # fmt: skip
    shape = ModelShape.from_config(
        {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 8, "vocab_size": 9,
         "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 512}
    )  # fmt: skip
    make_plan(loaded, shape)
    facts = [text for _, text in list_facts(loaded, shape)][-4:]
    assert facts == [
        f"{SUITE}, 2 of each kind: teacher, h2, sft, merge",
        f"{HARNESS}gsm8k, all problems: teacher, h2, sft, merge",
        "agreement, 1 documents of each kind: h2, sft, merge beside teacher",
        "diagnosis, layer by layer: h2, sft, merge beside teacher",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.suite=[tasks, recal]", "Did you mean recall"),
        ("evaluate.suite=[tasks, tasks]", "tasks is listed twice"),
        ("evaluate.suite=[]", "must be a list that is not empty"),
        ("evaluate.limits={recall: 2}", "limits names recall, which is not asked"),
        (f"evaluate.limits={{'{SUITE}': 2}}", "the one that evaluate.problems is for"),
        ("stages.h1.name=diagnosis", "eval/diagnosis holds what a suite finds"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_a_run(recipe, override, message):
    more = ["evaluate.diagnose=true"] if override.startswith("stages") else []
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe, [*more, override])


def test_a_missing_harness_is_said_before_a_run(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("hybridize.core.suites.find_spec", lambda name: None)
    with pytest.raises(MachineError, match="lm-evaluation-harness, which is not installed"):
        run_recipe(recipe, tmp_path / "run", overrides=[f"evaluate.suite={HARNESS}gsm8k"])
    assert not (tmp_path / "run").exists()
