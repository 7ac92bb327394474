"""The stop `export` of a recipe: the last model, once for each format."""

import json
import re

import pytest

from hybridize.core.artifacts import read_json
from hybridize.core.errors import RecipeError, RunError
from hybridize.core.recipe import Recipe
from tests.pipeline.small import run


def test_the_last_model_is_exported_with_card_and_recipe(recipe, copied):
    assert run(recipe, copied, "export.formats=[stock]", until="export") == ["export/stock"]
    folder = copied / "export" / "stock"
    result = read_json(folder / "result.json")["values"]
    assert result["model"] == "merge" and result["class"] == "granite"
    assert result["deviation"]["transformers"] < 1e-4
    assert (folder / "recipe.yaml").read_text() == recipe.read_text()
    assert "## Scores" in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "granitemoehybrid"
    assert run(recipe, copied, "export.formats=[stock]", until="export") == []
    with pytest.raises(
        RunError, match=r"export/stock is stale.*\n *export.dtype: None -> bfloat16"
    ):
        run(recipe, copied, "export.formats=[stock]", "export.dtype=bfloat16")


SMALL = {"version": 1, "teacher": {"model": "shipped"}}
WRONG = {
    "unknown": ({"formats": ["stok"]}, "'stok' is not an export format. Did you mean stock"),
    "twice": ({"formats": ["stock", "stock"]}, "stock is listed twice"),
    "not made": ({"formats": ["stock"], "model": "h9"}, "'h9', which is not made. Models: teacher"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_impossible_export_is_refused_before_the_run(name):
    section, message = WRONG[name]
    with pytest.raises(RecipeError, match=re.escape(message)):
        Recipe.from_values({**SMALL, "export": section})


def test_without_a_name_it_is_the_last_model():
    recipe = Recipe.from_values({**SMALL, "export": {"formats": ["stock"]}})
    assert recipe.export.model == "teacher"
