"""The examples run, and stay short enough to be read."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from hybridize.models import load_model, save_model
from hybridize.models.mixers import find_mixer
from hybridize.surgery import convert
from scripts.train_teacher import build_tokenizer
from tests.close import assert_close
from tests.report.fake_run import write_run
from tests.tiny import as_student, tiny_teacher, tokens

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SCRIPTS = [path for path in EXAMPLES if path.stem != "my_mixer"]
KIND = "my_mixer:GatedConvolution"
SHIPPED = ROOT / "hybridize" / "assets" / "teacher" / "config.json"


def load(name: str):
    spec = spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    """A teacher with random weights that knows the words of the tasks."""
    tokenizer = build_tokenizer()
    model = as_student(tiny_teacher(layers=3, vocab=len(tokenizer)))
    return save_model(model, tokenizer, tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture
def mixer_path(monkeypatch):
    """What PYTHONPATH=examples does."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    yield
    sys.modules.pop("my_mixer", None)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_has_at_most_40_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40


def test_convert_and_distill_on_a_tiny_teacher(teacher_folder, capsys):
    example = load("convert_and_distill")
    layout = example.main(str(teacher_folder), tokens="2k", problems=1, sequence_length=128)
    assert len(layout.converted) == 1
    out = capsys.readouterr().out
    assert "teacher" in out and "overall" in out


@pytest.mark.slow
@pytest.mark.skipif(not SHIPPED.exists(), reason="the shipped teacher is not in this checkout")
def test_convert_and_distill_on_the_shipped_teacher(capsys):
    layout = load("convert_and_distill").main(tokens="8k", problems=1)
    assert len(layout.converted) == 4


def test_read_a_run_prints_the_verdict_and_the_scores(tmp_path, capsys):
    load("read_a_run").main(str(write_run(tmp_path / "h7")))
    out = capsys.readouterr().out
    assert "7 of 12 layers converted" in out and "leave_one_out" in out and "h4: " in out


@torch.no_grad()
def test_a_mixer_of_ones_own_runs_packed_and_with_a_cache(mixer_path, tmp_path):
    assert find_mixer(KIND).__name__ == "GatedConvolution"
    teacher = as_student(tiny_teacher())
    layout = teacher.layout.convert([1, 2], to=KIND)
    student = convert(teacher, layout, init="random", options={"width": 3})
    ids = tokens(2, 24)
    whole = student(ids).logits

    segments = torch.tensor([[1] * 10 + [2] * 14, [1] * 20 + [0] * 4])
    packed = student(ids, segments=segments).logits
    assert_close(packed[:1, 10:], student(ids[:1, 10:]).logits, 1e-5)
    assert_close(packed[1:, :20], student(ids[1:, :20]).logits, 1e-5)

    cache = student.make_cache()
    pieces = [student(ids[:, :20], past_key_values=cache).logits]
    pieces += [student(ids[:, t : t + 1], past_key_values=cache).logits for t in range(20, 24)]
    assert_close(torch.cat(pieces, dim=1), whole, 1e-5)

    mask = torch.ones(2, 24, dtype=torch.long)
    mask[0, :5] = 0
    padded = student(ids, attention_mask=mask).logits
    assert_close(padded[:1, 5:], student(ids[:1, 5:]).logits, 1e-5)

    student.save_pretrained(tmp_path)
    back = load_model(tmp_path)
    assert back.layout == layout and torch.equal(back(ids).logits, whole)
