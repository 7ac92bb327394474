"""The examples of the page on data work: files, recipes and Python."""

import re
from pathlib import Path

import pytest
import yaml

import hybridize as hz
from hybridize.core.recipe import Recipe
from hybridize.core.sources import Blend, Datasets
from hybridize.core.stored_text import StoredText
from hybridize.pipeline.translate import make_source
from tests.training.chats import FORGETFUL, byte_tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files of the page, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    found = re.findall(r"^`(data/\w+\.jsonl)`[^\n]*\n\n```json\n(.*?)^```", PAGE, re.S | re.M)
    for name, content in found:
        Path(name).write_text(content)
    return [name for name, _ in found]


def test_each_file_is_read_by_its_keys_or_by_those_given(files):
    assert len(files) == len(blocks("json")) == 3
    for name in files:
        keys = {"prompt": "question", "completion": "solution"} if "traces" in name else None
        rows = hz.load_text(
            name, tokenizer=byte_tokenizer(FORGETFUL), sequence_length=64, keys=keys
        )
        assert rows.row(0).loss_mask_T.any()


@pytest.mark.parametrize("text", blocks("yaml"))
def test_each_recipe_is_read_and_gives_rows(text, files):
    values = {"version": 1, "teacher": {"model": "shipped"}, **yaml.safe_load(text)}
    recipe = Recipe.from_values(values)
    if isinstance(recipe.data.train, Datasets):
        assert StoredText.of(recipe.data.train).on_hub
        return
    tokenizer = byte_tokenizer(FORGETFUL)
    train = make_source(recipe.data.train, recipe, tokenizer)
    heldout = make_source(recipe.data.heldout, recipe, tokenizer, heldout=True)
    assert train.row(0).loss_mask_T.any() and heldout.row(0).loss_mask_T.any()
    assert isinstance(recipe.data.train, Blend) or not train.row(0).loss_mask_T.all()


def test_the_python_runs(files, capsys):
    class Teacher:
        tokenizer = byte_tokenizer(FORGETFUL)

    for code in blocks("python"):
        exec(code, {"hz": hz, "teacher": Teacher})
    assert "of 3 documents (train, 5% of the prompts held out)" in capsys.readouterr().out
    assert len(list(Path("cache/tokens").iterdir())) == 1


def test_the_error_that_is_shown_is_the_one_that_is_said(files):
    Path("data/traces.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"question": \n')
    shown = re.search(r"`(data data/traces\.jsonl, line 2 .*?)`", PAGE, flags=re.DOTALL)[1]
    with pytest.raises(hz.RunError) as caught:
        hz.load_text("data/traces.jsonl", tokenizer=byte_tokenizer(), sequence_length=8)
    assert str(caught.value) == " ".join(shown.split())
