"""Result files: the same twice, with all that decided them; pairs, suites, stock classes."""

import json

import pytest
from typer.testing import CliRunner

from hybridize import tasks
from hybridize.api import load_text
from hybridize.cli.app import app
from hybridize.cli.options import name_model
from hybridize.core.artifacts import read_json
from hybridize.core.catalog import known_names
from hybridize.core.errors import ModelError, RecipeError
from hybridize.evaluation.subjects import InProcess
from hybridize.models.model import load
from hybridize.models.stock import is_stock
from hybridize.stages import agreement, diagnose, evaluate
from hybridize.stages.agreement import AgreementSettings
from hybridize.stages.diagnose import DiagnoseSettings
from hybridize.stages.evaluate import EvaluateSettings
from tests.tiny_tasks import save_task_teacher, task_student, task_teacher

SUITE = "tests.tiny_tasks:SHORT_KINDS"


@pytest.fixture(scope="module")
def teacher():
    return task_teacher(layers=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_task_teacher(tmp_path_factory.mktemp("models") / "stock", layers=2)


def files_of(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "timing.json"
    }


@pytest.mark.parametrize("draws", [{}, {"samples": 2, "temperature": 0.8, "top_p": 0.9}])
def test_the_same_evaluation_twice_writes_the_same_bytes(teacher, tmp_path, draws):
    settings = EvaluateSettings(suite=SUITE, problems=3, max_new_tokens=4, batch=4, **draws)
    models = [teacher, task_student(teacher, "AM")]
    for name in ("one", "two"):
        evaluate.run_all(models, settings, tmp_path / name)
    one = files_of(tmp_path / "one")
    assert one == files_of(tmp_path / "two") and len(one) == 4
    written = read_json(tmp_path / "one" / "student.json")
    assert written["sampling"]["samples"] == settings.samples
    assert written["sampling"]["seed"] == written["seed"] == 2
    assert set(written["versions"]) >= {"python", "hybridize", "torch", "transformers"}
    assert written["machine"]["device"] == "cpu" and written["batch"] == 4
    assert "seconds" not in written and written["paired"]["other"] == "teacher"
    assert written["paired"]["overall"]["num_problems"] == 6


def test_agreement_and_diagnosis_write_the_same_twice(teacher, tmp_path):
    student = task_student(teacher, "AM")
    for name in ("one", "two"):
        subjects = [InProcess.of(teacher), InProcess.of(student)]
        agreement.run_all(subjects, AgreementSettings(rows=1), tmp_path / name / "agreement")
        diagnose.run(
            student, DiagnoseSettings(tokens=200, problems=1, max_new_tokens=2),
            tmp_path / name / "diagnosis" / "student", teacher=teacher,
        )  # fmt: skip
    one = files_of(tmp_path / "one")
    assert one == files_of(tmp_path / "two") and len(one) == 2
    found = read_json(tmp_path / "one" / "diagnosis" / "student.json")
    assert [layer["mixer"] for layer in found["layers"]] == ["attention", "mamba2"]
    assert found["layers"][1]["contribution_accuracy"] is not None


@pytest.fixture
def traces(tmp_path):
    path = tmp_path / "traces.jsonl"
    lines = [
        {"prompt": one.prompt_text, "completion": f" {one.completion_text}"}
        for one in (tasks.make("sort", seed=1, index=index) for index in range(9))
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path, lines


def test_agreement_and_diagnosis_read_text_of_ones_own(teacher, traces):
    path, lines = traces
    text = load_text(path, tokenizer=teacher.tokenizer, sequence_length=128)
    student = task_student(teacher, "AM")
    (found,) = agreement.run_all([teacher, student], AgreementSettings(rows=100), text=text)
    assert found.documents == 9 and found.text == text.identity
    prompts = sum(len(line["prompt"].split()) for line in lines)
    tokens = {row.by: row.tokens for row in found.rows if row.by in ("prompt", "completion")}
    # The first token is predicted by none.
    assert tokens["prompt"] == prompts - 9
    assert tokens["completion"] == sum(len(line["completion"].split()) for line in lines)
    settings = DiagnoseSettings(tokens=10_000)
    looked = diagnose.run(student, settings, teacher=teacher, text=text)
    assert looked.tokens == sum(tokens.values()) + 9 and looked.text == text.identity
    assert looked.documents_sha256 == found.documents_sha256


def test_agreement_needs_a_teacher_and_a_student(teacher):
    with pytest.raises(RecipeError, match="hybridize eval TEACHER STUDENT"):
        agreement.run_all([InProcess.of(teacher)], AgreementSettings())


def test_a_teacher_of_another_shape_is_refused(teacher):
    with pytest.raises(ModelError, match="num_hidden_layers 2, teacher has 3"):
        diagnose.run(teacher, DiagnoseSettings(), teacher=task_teacher(layers=3))


def test_prompts_beyond_the_last_training_are_noted(teacher):
    student = task_student(teacher, "AM")
    settings = EvaluateSettings(suite="recall", problems=1, max_new_tokens=2, lengths=(64, 96))
    assert evaluate.run(student, settings, name="s").notes == []
    student.network.config.last_training_window = 80
    found = evaluate.run(student, settings, name="s")
    assert found.notes and found.notes[0].startswith("5 of 10 answers end beyond 80 tokens")
    assert {(cell["prompt_length"], cell["depth"]) for cell in found.cells} == {
        (length, depth) for length in (64, 96) for depth in settings.depths
    }


def test_a_stock_class_answers_as_ours_does(folder):
    ours = InProcess.of(load(folder, name="ours"))
    theirs = InProcess.load_stock(folder, name="theirs")
    assert type(theirs.network).__name__ == "LlamaForCausalLM" and not is_stock(folder)
    settings = EvaluateSettings(suite=SUITE, problems=4, max_new_tokens=8, batch=4)
    first, second = evaluate.run_all([ours, theirs], settings)
    assert first.overall.mean_tokens == second.overall.mean_tokens
    assert first.overall.log_likelihood == pytest.approx(second.overall.log_likelihood, abs=1e-6)
    with pytest.raises(ModelError, match="class of its own"):
        InProcess.load_stock(folder.parent, name="none")


def test_a_class_only_transformers_knows_is_stock(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "granitemoehybrid"}))
    assert is_stock(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    assert not is_stock(tmp_path) and not is_stock(tmp_path / "none")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("out/h2", "h2"),
        ("runs/a/stages/04-h10/model", "h10"),
        ("runs/a/merge/model", "merge"),
        ("out/q4.gguf", "q4"),
    ],
)
def test_a_model_is_called_after_its_stage(folder, name):
    assert name_model(folder) == name


def call(*arguments, code=0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.stdout + done.stderr


def test_the_commands_write_files_and_figures(folder, traces, tmp_path):
    student = task_student(load(folder), "AM", name="h1")
    student.save(tmp_path / "h1")
    models = [folder, tmp_path / "h1"]
    out = call("eval", *models, "--suite", "recall", "--limit", 1, "--lengths", "48,96",
               "--max-new-tokens", 2, "--out", tmp_path / "recall")  # fmt: skip
    assert "against stock: " in out and "McNemar p = 1" in out
    assert (tmp_path / "recall" / "h1-recall.svg").read_text().startswith("<svg")
    call("eval", *models, "--suite", "agreement", "--limit", 1, "--out", tmp_path / "agreement")
    assert (tmp_path / "agreement" / "agreement.svg").exists()
    text = ["--text", traces[0]]
    out = call("eval", *models, "--suite", "agreement", "--limit", 3, *text, "--json")
    assert json.JSONDecoder().raw_decode(out)[0][0]["documents"] == 3
    out = call("diagnose", tmp_path / "h1", "--tokens", "100", *text, "--json")
    assert json.JSONDecoder().raw_decode(out)[0]["text"]["kind"] == "text"
    out = call("diagnose", tmp_path / "h1", "--teacher", folder, "--tokens", "100")
    assert "h1 beside teacher  AM" in out and "found: " in out
    out = call("eval", folder, "--stock", "--suite", SUITE, "--limit", 1, "--json",
               "--max-new-tokens", 2)  # fmt: skip
    assert json.JSONDecoder().raw_decode(out)[0][0]["machine"]["class"] == "LlamaForCausalLM"


@pytest.mark.parametrize("suite", known_names("suites"))
def test_every_suite_writes_the_same_bytes_twice_by_command(folder, tmp_path, suite):
    task_student(load(folder), "AM", name="h1").save(tmp_path / "h1")
    asked = ["eval", folder, tmp_path / "h1", "--suite", suite, "--limit", 1]
    asked += ["--max-new-tokens", 2, "--lengths", "48"]
    for name in ("one", "two"):
        call(*asked, "--out", tmp_path / name)
    one = files_of(tmp_path / "one")
    assert one == files_of(tmp_path / "two") and len(one) >= 2
    assert any(path.name == "timing.json" for path in (tmp_path / "one").rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "tasks"], "nothing to evaluate"),
        (["shipped", "--suite", "taks"], "Did you mean tasks"),
        (["shipped", "--suite", "agreement"], "hybridize eval TEACHER STUDENT"),
        (["shipped", "shipped", "--suite", "quick"], "two models are called"),
        (["shipped", "--samples", "3"], "samples at temperature 0"),
        (["shipped", "--text", "a.jsonl"], "suite tasks asks problems and reads no text"),
    ],
)
def test_what_cannot_be_evaluated_is_said(arguments, message):
    assert message in call("eval", *arguments, code=2)
