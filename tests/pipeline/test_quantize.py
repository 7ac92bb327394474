"""The stop `quantize` of a recipe: a node a type, and one that asks them all."""

import re

import pytest

from hybridize.core.artifacts import read_json
from hybridize.core.errors import RecipeError, RunError
from hybridize.core.recipe import Recipe
from hybridize.engines import llama_cpp
from hybridize.report import build_report, model_card
from tests.pipeline.small import run

TYPES = "quantize.types=[q8_0]"
MORE = "quantize.types=[q8_0, q4_0]"
TOKENS = "quantize.tokens=256"
SMALL = {"version": 1, "teacher": {"model": "shipped"}}
WRONG = {
    "unknown": ({"types": ["q4"]}, "'q4' is not a type of weights. Did you mean q4_1"),
    "twice": ({"types": ["q8_0", "q8_0"]}, "q8_0 is listed twice"),
    "not made": ({"types": ["q8_0"], "model": "h9"}, "quantize names 'h9', which is not made"),
}


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch):
    monkeypatch.setattr(llama_cpp, "find_program", lambda: None)
    monkeypatch.setattr(llama_cpp, "find_package_version", lambda: None)


def test_types_are_made_once_each_and_the_report_shows_them(recipe, copied):
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    assert run(recipe, copied, TYPES, TOKENS, until="quantize/q8_0") == ["quantize/q8_0"]
    result = read_json(copied / "quantize" / "q8_0" / "result.json")["values"]
    assert 0 < result["kl"] < 0.1 and result["bytes"] > 10_000
    assert (copied / "quantize" / "q8_0" / "recipe.yaml").read_text() == recipe.read_text()
    assert "Nothing has been quantised" in build_report(copied, ["md"]).read_text()

    nodes = ["quantize/q4_0", "quantize/served"]
    assert run(recipe, copied, MORE, TOKENS, until="quantize") == nodes
    assert run(recipe, copied, MORE, TOKENS, until="quantize") == []
    text = build_report(copied, ["md"]).read_text()
    assert "merge in fewer bits" in text and "Scores and speed are not measured" in text
    table = (copied / "report" / "tables" / "quantize.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in table] == ["type", "unquantised", "q8_0", "q4_0"]
    assert (copied / "quantize" / "quantize.csv").read_text().splitlines() == table
    assert "| q4_0 |" in (copied / "quantize" / "quantize.md").read_text()
    assert "## In fewer bits" in model_card(copied, "merge")
    assert "## In fewer bits" not in model_card(copied, "h2")

    with pytest.raises(RunError, match=r"quantize/q8_0 is stale.*\n *quantize.tokens: 256 -> 512"):
        run(recipe, copied, MORE, "quantize.tokens=512", until="quantize")
    redo = {"redo": ["quantize/q8_0"], "until": "quantize"}
    assert run(recipe, copied, MORE, TOKENS, **redo) == ["quantize/q8_0", "quantize/served"]


@pytest.mark.parametrize("name", WRONG)
def test_an_impossible_section_is_refused_before_the_run(name):
    section, message = WRONG[name]
    with pytest.raises(RecipeError, match=re.escape(message)):
        Recipe.from_values({**SMALL, "quantize": section})


def test_a_mixer_that_gguf_has_not_is_refused_before_the_run():
    stages = [{"name": "h1", "converted": 1, "tokens": "1M"}]
    values = {"importance": [{"method": "leave_one_out"}], "stages": stages}
    with pytest.raises(RecipeError, match="which has mamba2 beside attention, but"):
        Recipe.from_values(
            {**SMALL, **values, "mixer": {"kind": "mamba1"}, "quantize": {"types": ["q8_0"]}}
        )
    asked = {"types": ["q8_0"], "model": "teacher"}
    recipe = Recipe.from_values({**SMALL, **values, "mixer": {"kind": "mamba1"}, "quantize": asked})
    assert recipe.quantize.model == "teacher"


def test_without_a_name_it_is_the_last_model():
    recipe = Recipe.from_values({**SMALL, "quantize": {"types": ["q8_0"]}})
    assert recipe.quantize.model == "teacher"
