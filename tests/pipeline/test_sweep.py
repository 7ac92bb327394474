"""The sweep of a merge: a stop of its own, whose ends score as the two models do."""

import re

import pytest

from hybridize.core.artifacts import read_json, read_result
from hybridize.core.errors import RecipeError
from hybridize.core.recipe import load_recipe
from hybridize.report import build_report
from tests.pipeline.small import run

SWEEP = "merge.sweep=[0, 0.25, 1]"


def test_the_ends_of_a_sweep_score_as_the_two_models(copied, recipe):
    assert run(recipe, copied, SWEEP) == ["merge/sweep"]
    values = read_result(copied / "merge" / "sweep").values
    assert values["models"] == ["sft", "h2"]
    assert [tried["weight"] for tried in values["tried"]] == [0, 0.25, 1]
    ends = {"h2": values["tried"][0], "sft": values["tried"][-1], "merge": values["tried"][1]}
    for name, tried in ends.items():
        one = read_json(copied / "eval" / f"{name}.json")
        assert tried["overall"] == one["overall"] and tried["kinds"] == one["kinds"], name
    assert run(recipe, copied, SWEEP) == [], "it is done"
    assert run(recipe, copied) == [], "the merge itself does not depend on it"
    page = build_report(copied).read_text(encoding="utf-8")
    assert 'id="figure-merge-sweep"' in page
    rows = (copied / "report/tables/merge-sweep.csv").read_text().splitlines()
    chosen = [row for row in rows if row.endswith("True") and ",mean," in row]
    assert len(chosen) == 1 and chosen[0].startswith("0.25,")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["merge.sweep=[0, 1.5]"], "merge.sweep is [0.0, 1.5]. Give different weights from 0 to 1"),
        (["merge.sweep=[0.5, 0.5]"], "Give different weights"),
        (["merge.sweep=[0, 1]", "evaluate.suite=agreement"], "merge.sweep needs scores."),
        (
            ["merge.sweep=[0, 1]", "merge.models=[sft, h2, h2]", "merge.weights=null"],
            "merge.sweep tries weights of two models, but merge has 3.",
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(recipe, overrides, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe(recipe, overrides)
