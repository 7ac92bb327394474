"""A run that aligns first: the stop, what starts from it, and what a change of it makes stale."""

import pytest

from hybridize.core.artifacts import hash_file, read_json, read_jsonl, read_result
from hybridize.core.errors import Interrupted, RecipeError, RunError
from hybridize.core.recipe import load_recipe
from hybridize.models.model import load
from hybridize.pipeline import open_street
from hybridize.pipeline.translate import make_align_settings
from hybridize.surgery.aligned import AlignedMixers
from tests.pipeline.small import RECIPE, run
from tests.tiny_tasks import save_task_teacher

NODES = [
    "teacher", "importance/leave_one_out", "align", "h1", "importance/replace_one-h2", "h2",
]  # fmt: skip
ALIGN = "align: {tokens: 1024, tokens_per_step: 256}\n"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligning")
    text = RECIPE.replace("TEACHER", str(save_task_teacher(folder / "teacher")))
    text = text.replace("{kind: mamba2}\n", f"{{kind: mamba2, init: aligned}}\n{ALIGN}")
    kept = text.partition("sft:")[0] + "report: {format: [md]}\n"
    (folder / "small.yaml").write_text(kept)
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("aligned") / "run"
    run(recipe, out, until="importance/leave_one_out")
    with pytest.raises(Interrupted, match="stopped after step 1 of 4"):
        run(recipe, out, until="align", max_hours=0)
    assert open_street(load_recipe(recipe), out).states()["align"].kind == "begun"
    run(recipe, out)
    return out


def test_the_street_aligns_before_anything_starts_from_it(recipe, finished):
    street = open_street(load_recipe(recipe), finished)
    assert [node.name for node in street.nodes] == NODES
    assert [node.name for node in street.dependents("align")] == NODES[2:]
    assert {state.kind for state in street.states().values()} == {"done"}
    values = read_result(finished / "align").values
    assert values["tokens"] == 1024
    assert [entry["layer"] for entry in values["errors"]] == [0, 1, 2, 3]
    assert not (finished / "align" / "checkpoint").exists()
    assert len(list(read_jsonl(finished / "align" / "metrics.jsonl"))) == 4


def test_a_continued_alignment_equals_an_unbroken_one(recipe, finished, tmp_path):
    run(recipe, tmp_path / "run", until="align")
    made = sorted((tmp_path / "run" / "align").glob("*.safetensors"))
    assert [path.name for path in made] == [f"layer-{layer:02d}.safetensors" for layer in range(4)]
    for path in made:
        assert hash_file(path) == hash_file(finished / "align" / path.name)


def test_stages_start_from_the_mixers_of_the_run(finished):
    aligned = AlignedMixers.read(finished / "align")
    new = read_result(finished / "stages/01-h1").values["new_layers"]
    entries = read_json(finished / "stages/01-h1/weight_map.json")["entries"]
    for name, node in entries.items():
        if ".mixer." in name:
            assert node == {"op": "copy", "name": name, "origin": "aligned"}
            assert f".{new[0]}." in name
    student = load(finished / "stages/01-h1/model").network.state_dict()
    moved = [name for name in student if f".{new[0]}.mixer." in name]
    assert moved and any(not student[name].equal(aligned.take(name)) for name in moved)


def test_the_report_shows_the_errors(finished):
    text = (finished / "report" / "report.md").read_text()
    assert "Mixers aligned to the attention of their layer" in text
    assert "on 1.02k tokens" in text


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("align.lr=2e-3", "align.lr: 0.001 -> 0.002"),
        ("mixer.calibrate=128", "mixer.calibrate: None -> 128"),
    ],
)
def test_a_changed_alignment_is_refused_by_name(recipe, finished, override, change):
    with pytest.raises(RunError) as caught:
        run(recipe, finished, override)
    assert str(caught.value).startswith("align is stale: its recipe changed since it ran.")
    assert change in str(caught.value)
    states = open_street(load_recipe(recipe, [override]), finished).states()
    assert states["h1"].kind == "stale"
    assert states["importance/leave_one_out"].kind == "done"


def test_how_students_start_makes_no_alignment_stale(recipe, finished):
    other = load_recipe(recipe, ["mixer.init=from_attention"])
    states = open_street(other, finished).states()
    assert states["align"].kind == "done"
    assert states["h1"].changes == (("mixer.init", "aligned", "from_attention"),)


def test_an_update_takes_one_row_unless_told(recipe):
    assert make_align_settings(load_recipe(recipe)).training.tokens_per_step == 256
    plain = load_recipe(recipe, ["align.tokens_per_step=null"])
    assert make_align_settings(plain).training.tokens_per_step == plain.data.sequence_length == 128
    with pytest.raises(RecipeError, match="align has a budget of 64 tokens, less than one step"):
        load_recipe(recipe, ["align.tokens_per_step=null", "align.tokens=64"])
