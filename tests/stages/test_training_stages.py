"""Convert, distil, fine-tune, evaluate: what each changes, what it leaves, what it writes."""

import json

import pytest
import torch

from hybridize.core.artifacts import plain, read_json, read_jsonl
from hybridize.core.errors import RecipeError
from hybridize.core.layout import Layout
from hybridize.stages import convert, distill, evaluate, sft
from hybridize.stages.evaluate import EvaluateSettings
from hybridize.surgery.fresh import FreshSettings
from hybridize.training.optim import OptimizerSettings, ScheduleSettings
from hybridize.training.settings import FitSettings
from tests.tiny_tasks import shake, task_rows, task_student, task_teacher

TRAINING = FitSettings(
    tokens=12 * 256,
    tokens_per_step=256,
    rows_per_microbatch=2,
    optimizer=OptimizerSettings(name="adamw", lr=3e-3),
    schedule=ScheduleSettings(name="constant", warmup=0.0),
)
LITTLE = FitSettings(tokens=512, tokens_per_step=256, rows_per_microbatch=2)
SUITE = "tests.tiny_tasks:SHORT_KINDS"


@pytest.fixture(scope="module")
def teacher():
    return task_teacher()


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def assert_equal(model, state, names):
    for name in names:
        assert torch.equal(model.network.state_dict()[name], state[name]), name


def test_convert_touches_only_the_layers_that_differ(teacher, tmp_path):
    start = shake(task_student(teacher, "MAAA"), seed=1, name="h1")
    before = state_of(start)
    layout = Layout.parse("MAMA")
    found = convert.run(start, layout, FreshSettings(), tmp_path, source=teacher, name="h2")
    assert (found.name, found.layout) == ("h2", layout)
    assert (start.name, start.layout) == ("h1", Layout.parse("MAAA"))
    kept = [name for name in before if not name.startswith("model.layers.2.self_attn.")]
    assert_equal(found, before, kept)
    new = set(found.network.state_dict()) - set(before)
    assert new
    assert all(name.startswith("model.layers.2.mixer.") for name in new)
    source = teacher.network.model.layers[2].self_attn.o_proj.weight
    fresh = found.network.model.layers[2].mixer.out_proj.weight
    assert torch.equal(fresh, source), "the fresh mixer is filled from the teacher's attention"
    assert not torch.equal(fresh, start.network.model.layers[2].self_attn.o_proj.weight)
    assert_equal(start, before, before)
    text = json.dumps(read_json(tmp_path / "weight_map.json"))
    assert all(name in text for name in new)


def test_converting_to_the_same_layout_changes_nothing(teacher):
    start = task_student(teacher, "MAAM")
    found = convert.run(start, start.layout, FreshSettings(), source=teacher, name="again")
    assert_equal(found, state_of(start), state_of(start))


def test_distilling_nears_the_teacher_and_leaves_it_alone(teacher, tmp_path):
    before = state_of(teacher)
    student = task_student(teacher, "AMAA")
    settings = distill.DistillSettings(training=TRAINING, heldout_tokens=512)
    found = distill.run(
        student, teacher, task_rows(), settings, tmp_path, heldout=task_rows("heldout")
    )
    assert found.tokens == TRAINING.tokens
    assert found.heldout["reverse_kl"] < 0.8 * found.heldout_before["reverse_kl"]
    assert_equal(teacher, before, before)
    assert len(list(read_jsonl(tmp_path / "metrics.jsonl"))) == 12


def test_distilling_without_held_out_rows_measures_none(teacher):
    settings = distill.DistillSettings(training=LITTLE, loss={"forward_kl": 1.0})
    found = distill.run(task_student(teacher, "AMAA"), teacher, task_rows(), settings)
    assert found.heldout is found.heldout_before is None


def test_fine_tuning_lowers_the_cross_entropy_of_completions(teacher):
    student = task_student(teacher, "AMAA")
    settings = sft.SftSettings(training=TRAINING, heldout_tokens=512)
    found = sft.run(student, task_rows(), settings, heldout=task_rows("heldout"))
    assert found.heldout["cross_entropy"] < 0.9 * found.heldout_before["cross_entropy"]


def test_an_evaluation_equals_what_it_wrote(teacher, tmp_path):
    settings = EvaluateSettings(suite=SUITE, problems=3, max_new_tokens=4, batch=4)
    told = []
    found = evaluate.run(
        teacher, settings, tmp_path / "eval" / "h1", name="h1", tokens=77,
        progress=lambda *counts: told.append(counts),
    )  # fmt: skip
    assert told == [(4, 6), (6, 6)]
    assert read_json(tmp_path / "eval" / "h1.json") == plain(found.to_json())
    assert read_json(tmp_path / "eval" / "h1" / "timing.json") == {"seconds": found.seconds}
    answers = list(read_jsonl(tmp_path / "eval" / "h1" / "answers.jsonl"))
    assert [answer["kind"] for answer in answers] == ["add"] * 3 + ["sort"] * 3
    assert (found.model, found.tokens, found.layout) == ("h1", 77, "AAAA")
    assert set(found.kinds) == {"add", "sort"}
    assert found.overall.num_problems == 6
    assert str(found).splitlines()[-1].startswith("overall")
    again = evaluate.run(teacher, settings, name="h1")
    assert again.kinds == found.kinds


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("task", r"'task' is not a suite \(known: tasks, quick, full, recall, agreement\)"),
        ("tests.tiny_tasks:NOTHING", "cannot be imported"),
        ("tests.nowhere:KINDS", "cannot be imported"),
    ],
)
def test_an_unknown_suite_is_refused(teacher, suite, message):
    with pytest.raises(RecipeError, match=message):
        evaluate.run(teacher, EvaluateSettings(suite=suite), name="teacher")
