"""The public verbs change none of their arguments and hand values on to each other."""

import pytest
import torch

import hybridize as hz
from hybridize.models.model import Model
from tests.tiny import as_student, tiny_teacher

SETTINGS = {"tokens_per_step": 32, "optimizer": {"lr": 1e-3}}


class Words:
    """A tokenizer that gives every word of a text a number below 60."""

    eos_token_id = 2

    def get_vocab(self):
        return {f"w{number}": number for number in range(60)}

    def __call__(self, text, *, add_special_tokens=True):
        return {"input_ids": [3 + len(word) % 50 for word in text.split()]}


@pytest.fixture(scope="module")
def teacher():
    return Model("teacher", as_student(tiny_teacher(layers=2)), Words())


@pytest.fixture(scope="module")
def data(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.jsonl"
    path.write_text('{"text": "a bb ccc dddd eeeee"}\n' * 20)
    return hz.load_text(path, tokenizer=teacher.tokenizer, sequence_length=16)


def test_the_verbs_follow_each_other_and_leave_their_arguments(teacher, data):
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    importance = hz.measure_importance(teacher, data, tokens=32)
    layout = teacher.layout.convert(importance.least(1), to="mamba2")
    student = hz.convert(teacher, layout)
    first = {name: tensor.clone() for name, tensor in student.network.state_dict().items()}
    trained = hz.distill(student, teacher, data, tokens=64, settings=SETTINGS)
    merged = hz.merge([student, trained], weights=[1, 0])
    assert (student.name, trained.layout, merged.layout) == ("h1", layout, layout)
    for model, kept in ((teacher, before), (student, first), (merged, first)):
        for name, tensor in model.network.state_dict().items():
            assert torch.equal(tensor, kept[name]), name
    assert any(
        not torch.equal(tensor, first[name])
        for name, tensor in trained.network.state_dict().items()
    )


def test_replace_one_takes_its_settings_from_the_recipe_section(teacher, data):
    settings = hz.ReplaceOne(tokens=32, steps=1, tokens_per_step=32)
    importance = hz.measure_importance(teacher, data, settings=settings, teacher=teacher)
    assert (importance.method, importance.mixer, importance.steps) == ("replace_one", "mamba2", 1)
    assert len(importance.scores) == 2


def test_a_wrong_setting_is_named_like_in_a_recipe(teacher, data):
    with pytest.raises(hz.RecipeError, match=r"distill\.optimizer\.lrr is not a setting"):
        hz.distill(teacher, teacher, data, tokens=64, settings={"optimizer": {"lrr": 1}})
    with pytest.raises(hz.RecipeError, match="less than one step of 512000"):
        hz.distill(teacher, teacher, data, tokens="1k")


def test_text_of_another_tokenizer_is_refused(teacher, tmp_path):
    class More(Words):
        def get_vocab(self):
            return {f"w{number}": number for number in range(100)}

        def __call__(self, text, *, add_special_tokens=True):
            return {"input_ids": [90 for _ in text.split()]}

    (tmp_path / "x.jsonl").write_text('{"text": "a b c"}\n')
    data = hz.load_text(tmp_path / "x.jsonl", tokenizer=More(), sequence_length=16)
    with pytest.raises(hz.RunError, match="the token 90, but teacher has embeddings for 64 tokens"):
        hz.sft(teacher, data, tokens=32, settings=SETTINGS)


def test_bench_prints_a_table(teacher):
    text = repr(hz.bench([teacher], context_tokens=[4], output_tokens=1, repeats=1))
    assert "teacher" in text
