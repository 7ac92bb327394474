"""A plan lays the stages out, refuses the impossible, and reads back what it wrote."""

import json

import pytest

from hybridize.core.cost import ranking_flops, training_bytes
from hybridize.core.errors import RecipeError, RunError
from hybridize.core.machine import FLOPS_PER_SECOND
from hybridize.core.plan import Plan, make_plan
from hybridize.core.recipe import load_recipe
from hybridize.core.shape import ModelShape

SHAPE = ModelShape.from_config(
    {
        "model_type": "llama",
        "num_hidden_layers": 12,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 100,
        "max_position_embeddings": 1024,
    }
)


@pytest.fixture
def recipe():
    return load_recipe("tiny", ["data.sequence_length=512"])


@pytest.fixture
def plan(recipe):
    return make_plan(recipe, SHAPE)


def test_budgets_add_up(plan, recipe):
    assert plan.tokens == sum(stage.tokens for stage in recipe.stages) + recipe.sft.tokens
    stages = sum(stage.flops + stage.ranking_flops for stage in plan.stages)
    assert plan.flops == pytest.approx(stages + plan.sft_flops)
    assert plan.seconds(1e9) == plan.flops / 1e9


def test_more_layers_than_the_teacher_has_are_refused_with_the_line(recipe):
    too_many = load_recipe("tiny", ["stages.h10.converted=20"])
    with pytest.raises(RecipeError, match="stage h10 converts 20 layers, but the teacher has 12"):
        make_plan(too_many, SHAPE)
    line = recipe.get_line("data.sequence_length")
    assert line is None
    with pytest.raises(RecipeError, match=r"recipe tiny\.yaml, .*at most 1024"):
        make_plan(load_recipe("tiny", ["data.sequence_length=2048"]), SHAPE)


def test_layers_are_decided_stage_by_stage(plan):
    decided = plan.with_layers("h6", [1, 3, 5, 7, 9, 11]).with_layers("h7", [0])
    assert str(decided.layout_of("h7")) == "MMAMAMAMAM AM"
    assert decided.layout_of("h8") is None
    with pytest.raises(RunError, match="no layout yet"):
        plan.with_layers("h7", [0])
    with pytest.raises(RunError, match="7 converted layers"):
        decided.with_layers("h7", [1])


def test_it_reads_back_what_it_wrote(plan):
    decided = plan.with_layers("h6", [0, 1, 2, 3, 4, 5])
    assert Plan.from_json(json.loads(json.dumps(decided.to_json()))) == decided
    with pytest.raises(RunError, match="not a plan file"):
        Plan.from_json({"stages": []})


def test_it_prints_a_row_a_stage(plan):
    lines = plan.with_layers("h6", range(6)).text(1e12).splitlines()
    assert lines[1].split()[0] == "teacher"
    assert lines[2].endswith("MMMMMMAAAA AA")
    assert lines[3].endswith("decided by replace_one")
    assert "at 1 TFLOP/s" in lines[-2]


def test_training_only_the_mixers_takes_less_memory(recipe):
    mixers = load_recipe("tiny", ["data.sequence_length=512", "distill.train=[mixer]"])
    assert training_bytes(mixers, SHAPE) < training_bytes(recipe, SHAPE)


def test_the_ranking_of_the_layers_is_counted(recipe, plan):
    by_leaving_out, by_replacing = (plan.stage(name).ranking_flops for name in ("h6", "h7"))
    forward = SHAPE.flops_per_token(context=256)
    measured, probed = (recipe.measurement(name) for name in ("leave_one_out", "replace_one"))
    assert by_leaving_out == 13 * measured.tokens * forward
    assert by_replacing > 6 * probed.steps * probed.tokens_per_step * 3 * forward
    again = load_recipe("tiny", ["data.sequence_length=512", "stages.h7.rank_by=leave_one_out"])
    assert ranking_flops(again, SHAPE, again.stage("h7")) == 0


def test_the_time_of_the_shipped_teacher_is_what_was_measured():
    sizes = {"hidden_size": 128, "intermediate_size": 352, "vocab_size": 176}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    more = {"num_hidden_layers": 12, "max_position_embeddings": 2048, "model_type": "llama"}
    shape = ModelShape.from_config({**sizes, **heads, **more})
    for stage in make_plan(load_recipe("tiny"), shape).stages:
        assert 4_000 < FLOPS_PER_SECOND * stage.tokens / stage.flops < 5_000
    rows = load_recipe("tiny", ["distill.tokens_per_step=8192"])
    for stage in make_plan(rows, shape).stages:
        assert 1.5 * 2**30 < stage.memory_bytes < 3 * 2**30
