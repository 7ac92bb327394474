"""The whole street: what a run leaves, what a second run skips, refuses, redoes and adds."""

import pytest

from hybridize.core.artifacts import RunFolder, hash_file, read_json, read_jsonl, read_result
from hybridize.core.errors import Interrupted, RecipeError, RunError
from hybridize.core.plan import Plan
from hybridize.core.recipe import load_recipe
from hybridize.models.model import load
from hybridize.pipeline import open_street
from hybridize.report import build_report, verdict
from tests.pipeline.small import (
    MODELS,
    NODES,
    hash_weights,
    list_files,
    node_states,
    run,
    told,
)
from tests.tiny_tasks import save_task_teacher


def test_the_whole_street_is_run_in_order_and_soon(finished):
    assert told(finished.with_name("news"), "done") == NODES
    assert float(finished.with_name("seconds").read_text()) < 20


def test_a_run_leaves_all_its_results(finished, recipe):
    folder = RunFolder(finished)
    assert node_states(finished) == dict.fromkeys(NODES, "done")
    assert folder.recipe.read_bytes() == recipe.read_bytes()
    assert load_recipe(folder.resolved_recipe) == load_recipe(recipe)
    assert read_json(folder.environment)["device"] == "cpu"
    assert read_json(folder.teacher)["num_layers"] == 4
    for path in (folder.bench, folder.importance("replace_one-h2"), folder.eval("merge")):
        assert path.exists()
    for name in ("index.html", "report.md"):
        assert (folder.report / name).stat().st_size > 1000
    assert isinstance(verdict(finished), str)
    assert not list(finished.rglob("checkpoint")), "a checkpoint goes when the result stands"
    assert not list(finished.rglob("begun.json"))
    for name in MODELS:
        assert (finished / name / "model" / "README.md").exists()


def test_results_and_plan_tell_one_story(finished):
    plan = Plan.from_json(read_json(finished / "plan.json"))
    h1, h2 = (read_result(finished / name).values for name in MODELS[:2])
    assert [h1["layout"], h2["layout"]] == [stage.layout for stage in plan.stages]
    assert h2["converted"] == sorted(h1["new_layers"] + h2["new_layers"])
    assert len(h1["converted"]) == 1
    assert (h1["cumulative_tokens"], h2["cumulative_tokens"]) == (2048, 4096)
    assert read_result(finished / "sft").values["cumulative_tokens"] == 4096 + 1024
    assert read_result(finished / "merge").values["layout"] == h2["layout"]
    assert read_json(finished / "eval" / "h2.json")["tokens"] == 4096
    least = read_result(finished / "importance" / "leave_one_out").values["least_first"]
    assert h1["new_layers"] == least[:1]
    assert h2["heldout"]["reverse_kl"] > 0
    for name in MODELS:
        model = load(finished / name / "model", name=name)
        values = read_result(finished / name).values
        assert str(model.layout) == values["layout"]
        assert values["weights_sha256"] == hash_file(finished / name / "model/model.safetensors")


def test_a_later_stage_goes_on_in_the_data(finished):
    first = [line["tokens"] for line in read_jsonl(finished / MODELS[1] / "metrics.jsonl")]
    assert first == list(range(256, 2049, 256))


def test_a_second_run_skips_everything(copied, recipe):
    before = list_files(copied)
    assert run(recipe, copied) == []
    assert told(copied.with_name("run.news"), "skip") == NODES
    after = list_files(copied)
    assert after.keys() == before.keys()
    kept = [name for name in before if "stages/" in name and not name.endswith("README.md")]
    assert kept
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


@pytest.mark.parametrize(
    ("override", "node", "change"),
    [
        ("stages.h1.tokens=1024", "h1", "stages.h1.tokens: 2048 -> 1024"),
        ("distill.optimizer.lr=2e-3", "importance/replace_one-h2", "lr: 0.001 -> 0.002"),
        ("seed=4", "importance/leave_one_out", "seed: 3 -> 4"),
        (
            "stages.h2.start_from=teacher",
            "importance/replace_one-h2",
            "stages.h2.start_from: h1 -> teacher",
        ),
        ("merge.weights=[1,1]", "merge", "merge.weights: [1.0, 3.0] -> [1.0, 1.0]"),
        ("bench.repeats=2", "bench", "bench.repeats: 1 -> 2"),
        ("evaluate.problems=3", "eval/teacher", "evaluate.problems: 2 -> 3"),
        ("data.train.mix.sort=2", "importance/leave_one_out", "data.train.mix.sort: 1.0 -> 2.0"),
    ],
)
def test_a_changed_key_is_refused_by_name(copied, recipe, override, node, change):
    before = list_files(copied)
    with pytest.raises(RunError) as caught:
        run(recipe, copied, override)
    message = str(caught.value)
    first = "h1" if override.startswith("distill") else node
    assert message.startswith(f"{first} is stale: its recipe changed since it ran.")
    assert change in message
    assert f"--redo {first}" in message
    assert list_files(copied) == before
    states = open_street(load_recipe(recipe, [override]), copied).states()
    assert states[node].kind == "stale"
    assert states["teacher"].kind == "done"


@pytest.mark.parametrize(
    "override", ["distill.checkpoint_every=1024", "distill.evaluate_every=1024", "name=other"]
)
def test_what_does_not_change_a_result_may_change(copied, recipe, override):
    assert run(recipe, copied, override) == []


def test_a_changed_teacher_is_refused(copied, recipe, tmp_path):
    other = save_task_teacher(tmp_path / "teacher", layers=5)
    with pytest.raises(RunError, match=r"(?s)teacher is stale.*fingerprint: \w+ -> \w+"):
        run(recipe, copied, f"teacher.model={other}")


def test_redo_runs_a_node_and_what_depends_on_it(copied, recipe, finished):
    expected = [*NODES[6:]]
    assert run(recipe, copied, redo=["h2"]) == expected
    assert hash_weights(copied) == hash_weights(finished)
    assert run(recipe, copied, redo=["eval/h1", "merge"]) == ["eval/h1", "merge", "eval/merge"]


def test_redo_takes_the_changed_key(copied, recipe):
    before = hash_weights(copied)
    redone = run(recipe, copied, "stages.h2.tokens=1024", redo=["h2"])
    assert redone == NODES[6:]
    after = hash_weights(copied)
    assert [name for name in MODELS if after[name] != before[name]] == list(MODELS[1:])
    assert Plan.from_json(read_json(copied / "plan.json")).stage("h2").tokens == 1024


def test_a_wrong_stop_is_refused_before_anything_is_removed(copied, recipe):
    before = list_files(copied)
    with pytest.raises(RunError, match=r"--until h9: the recipe has no such stop\. Its stops: imp"):
        run(recipe, copied, redo=["h2"], until="h9")
    with pytest.raises(RunError, match=r"'h9' is not a stop of this recipe\. Its stops: teacher"):
        run(recipe, copied, redo=["h2", "h9"])
    assert list_files(copied) == before


def test_a_half_removed_node_is_not_done(copied, recipe, monkeypatch):
    def stop(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr("hybridize.pipeline.shutil.rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, copied, redo=["merge"])
    monkeypatch.undo()
    assert run(recipe, copied) == ["eval/merge"]
    with pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr("hybridize.pipeline.shutil.rmtree", stop)
        run(recipe, copied, redo=["bench"])
    assert read_result(copied / "bench") is None


def test_until_stops_and_a_half_finished_run_reports(recipe, tmp_path):
    out = tmp_path / "run"
    assert run(recipe, out, until="importance") == NODES[:2]
    assert run(recipe, out, until="plan") == []
    build_report(out, ("html", "md"))
    assert run(recipe, out, until="h1") == NODES[2:4]
    states = node_states(out)
    assert [name for name in NODES if states[name] == "done"] == NODES[:4]
    assert {states[name] for name in NODES[4:]} == {"to do"}
    build_report(out, ("html", "md"))
    text = (out / "report" / "report.md").read_text()
    assert "h1" in text
    assert isinstance(verdict(out), str)
    assert run(recipe, out, until="eval/h1") == ["eval/h1"]


def test_a_stage_may_be_added_later(copied, recipe, tmp_path):
    longer = tmp_path / "longer.yaml"
    text = recipe.read_text()
    more = "  - {name: h3, converted: 3, tokens: 512, rank_by: leave_one_out}\n"
    longer.write_text(text.replace("sft: {tokens", f"{more}sft: {{start_from: h2, tokens"))
    assert run(longer, copied, until="eval/h3") == ["h3", "eval/h3"]
    plan = Plan.from_json(read_json(copied / "plan.json"))
    assert [stage.name for stage in plan.stages] == ["h1", "h2", "h3"]
    assert all(stage.layout for stage in plan.stages)


def test_the_hours_end_and_the_run_goes_on(recipe, tmp_path, finished):
    out = tmp_path / "run"
    run(recipe, out, until="eval/teacher")
    for step in (1, 2):
        with pytest.raises(Interrupted, match=f"stopped after step {step} of 8"):
            run(recipe, out, until="h1", max_hours=0)
        assert open_street(load_recipe(recipe), out).states()["h1"].kind == "begun"
    assert run(recipe, out, until="h1") == ["h1"]
    first = "stages/01-h1/model/model.safetensors"
    assert hash_file(out / first) == hash_file(finished / first)


def test_a_begun_node_is_stale_when_its_recipe_changes(recipe, tmp_path):
    run(recipe, tmp_path / "run", until="eval/teacher")
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "run", until="h1", max_hours=0)
    with pytest.raises(RunError, match=r"(?s)h1 is stale.*stages.h1.tokens: 2048 -> 1024"):
        run(recipe, tmp_path / "run", "stages.h1.tokens=1024", until="h1")


def test_measurements_without_stages_are_a_run(tmp_path, recipe):
    short = tmp_path / "short.yaml"
    kept = recipe.read_text().partition("stages:")[0]
    short.write_text(kept)
    assert run(short, tmp_path / "run", until="importance") == [
        "teacher", "importance/leave_one_out", "importance/replace_one",
    ]  # fmt: skip


def test_the_names_of_other_stops_are_no_names_of_stages(recipe):
    with pytest.raises(RecipeError, match="the stage name bench is reserved"):
        load_recipe(recipe, ["stages.h2.name=bench"])
