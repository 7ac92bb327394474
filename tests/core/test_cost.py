"""What is planned for a machine: formulas by hand, against published runs, and what is refused."""

import json
import runpy

import pytest

from hybridize.core.errors import RecipeError
from hybridize.core.machine import FLOPS_PER_SECOND, GPUS, plan_speed, share_busy
from hybridize.core.memory import LOSS_BLOCK, LOSS_VALUES, plan_memory
from hybridize.core.plan import Plan, make_plan
from hybridize.core.quantities import parse_bytes
from hybridize.core.recipe import Recipe, load_recipe
from hybridize.core.shape import ModelShape
from tests.test_architecture import ROOT

POINTS = runpy.run_path(str(ROOT / "benchmarks" / "cost.py"))
LLAMA = ModelShape.from_config(POINTS["LLAMA_8B"])
APRIEL = ModelShape.from_config(POINTS["APRIEL"])
MACHINE = {"gpu": "h100-sxm", "gpus": 8, "mfu": 0.5}


def make_recipe(*overrides: str, **machine: object) -> Recipe:
    values = {
        "version": 1,
        "teacher": {"model": "llama", "dtype": "bfloat16"},
        "data": {"sequence_length": 4096},
        "importance": [{"method": "leave_one_out"}],
        "distill": {"dtype": "bfloat16", "tokens_per_step": 64 * 4096, "rows_per_microbatch": 1},
        "stages": [{"name": "h8", "converted": 8, "tokens": "1B"}],
        "machine": MACHINE | machine,
    }
    return Recipe.from_values(values, overrides=overrides)


def test_the_page_has_the_deviations_that_the_formulas_have():
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    told = page.partition("<!-- points -->")[2].partition("<!-- end -->")[0].strip()
    assert told == POINTS["render_table"](), "put in what benchmarks/cost.py prints"
    for number in ("3.4 GiB", "47.9 %", "2.7 thousand tokens"):
        assert number in page


def test_the_formulas_come_near_what_was_published():
    points = list(POINTS["list_points"]())
    assert len(points) >= 3
    assert all(abs(point.deviation) < 0.2 for point in points)
    assert sum(abs(point.deviation) < 0.1 for point in points) >= 5


def test_the_notes_on_the_page_follow_from_the_formulas():
    recipe = load_recipe("apriel-h1-15b")
    memory = plan_memory(recipe, APRIEL, recipe.stage("h30"), 30, 64)
    assert memory.loss / 2**30 == pytest.approx(3.4, abs=0.05)
    counted = 2904 * 3 * LLAMA.flops_per_token(context=4096) / GPUS["a100-80gb"][0]
    assert counted == pytest.approx(0.479, abs=5e-4)
    plan = make_plan(recipe, APRIEL)
    seconds = (plan.flops - sum(stage.ranking_flops for stage in plan.stages)) / (
        plan.speed.flops_per_second
    )
    assert plan.tokens / seconds / 64 == pytest.approx(2700, abs=50)


def test_the_alignment_is_planned_on_one_device():
    recipe = make_recipe("mixer.init=aligned", "align.tokens=100M", "align.tokens_per_step=8192")
    plan = make_plan(recipe, LLAMA)
    assert (plan.align_tokens, plan.tokens) == (10**8, 10**9)
    head = 2 * LLAMA.hidden_size * LLAMA.vocab_size
    inner, state = LLAMA.query_size, LLAMA.head_dim
    mixers = 32 * (2 * LLAMA.mixer_parameters("mamba2") + 6 * inner * state)
    teacher = LLAMA.flops_per_token(context=2048) - head
    assert plan.align_flops == pytest.approx(10**8 * (teacher + 3 * mixers))
    waited = make_plan(make_recipe(), LLAMA).flops + 8 * plan.align_flops
    assert plan.flops == pytest.approx(waited)
    memory, trained = plan.align_memory, 32 * LLAMA.mixer_parameters("mamba2")
    assert memory.teacher == 2 * LLAMA.parameters()
    assert (memory.student, memory.gradients, memory.optimizer) == (
        2 * trained, 4 * trained, 8 * trained
    )  # fmt: skip
    shell = 32 * 4 * (LLAMA.hidden_size + LLAMA.ffn_size)
    saved = LLAMA.saved_values(LLAMA.layout().convert(range(32), to="mamba2")) - shell
    assert memory.activations == 2 * 4096 * saved
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    text = plan.text()
    assert "a mamba2 for each layer" in text and "in the largest stage, align" in text
    assert make_plan(make_recipe(), LLAMA).align_memory is None


def test_memory_is_what_the_formulas_on_the_page_say():
    recipe = make_recipe()
    memory = plan_memory(recipe, LLAMA, recipe.stages[0], 8, 8)
    layout = LLAMA.layout().convert(range(8), to="mamba2")
    weights, vocabulary, width = LLAMA.parameters(layout), LLAMA.vocab_size, LLAMA.hidden_size
    assert memory.teacher == 2 * LLAMA.parameters() / 8
    assert memory.student == 2 * weights / 8
    assert (memory.gradients, memory.optimizer) == (4 * weights / 8, 8 * weights / 8)
    shell = 2 * width + 3 * width * LLAMA.ffn_size
    layer = shell + LLAMA.mixer_parameters("mamba2")
    assert memory.gathered == 2 * (3 * layer + 2 * 2 * vocabulary * width)
    held = 2 * (2**27 + 4096 * width)
    assert memory.loss == 4 * (8 * 2**24 + vocabulary * width) + held
    assert memory.activations == 2 * 4096 * LLAMA.saved_values(layout)
    inputs = 2 * 4096 * 32 * width
    assert inputs < memory.recomputed < inputs + memory.activations / 16
    parts = [value for name, value in vars(memory).items() if name != "activations"]
    assert memory.total == sum(parts)
    assert memory.total_kept == memory.total - memory.recomputed + memory.activations


def test_more_gpus_take_less_each_and_fewer_trained_weights_too():
    recipe = make_recipe()
    few, many = (plan_memory(recipe, LLAMA, recipe.stages[0], 8, gpus) for gpus in (8, 64))
    assert many.student * 8 == few.student and many.gathered == few.gathered
    mixers = make_recipe("distill.train=[mixer]")
    assert plan_memory(mixers, LLAMA, mixers.stages[0], 8, 8).total < 0.8 * few.total
    alone = plan_memory(recipe, LLAMA, recipe.stages[0], 8, 1)
    assert alone.gathered == 0 and alone.student == few.student * 8


def test_the_pieces_of_the_loss_are_those_of_the_operator():
    from hybridize.ops import divergence

    assert (LOSS_VALUES, LOSS_BLOCK) == (divergence.FAR_CHUNK_VALUES, divergence.FAR_BLOCK_VALUES)


def test_speed_and_money_follow_from_the_machine():
    plan = make_plan(make_recipe(price=2.0), LLAMA)
    assert plan.speed.flops_per_second == 8 * 989.4e12 * 0.5
    hours = plan.flops / (989.4e12 * 0.5) / 3600
    assert plan.speed.gpu_hours(plan.flops) == pytest.approx(hours)
    assert f"{hours:,.0f} GPU hours, {2 * hours:,.0f} in money" in plan.text()
    assert "money" not in make_plan(make_recipe(), LLAMA).text()
    own = plan_speed(make_recipe(gpu="mine", peak_flops=1e15, memory="96GiB"))
    assert own.flops_per_second == 4e15 and own.memory_bytes == 96 * 2**30


def test_gpus_that_do_not_divide_the_rows_wait():
    assert share_busy(64, 64) == share_busy(64, 32) == 1
    assert share_busy(64, 48) == pytest.approx(64 / 96)
    slower = plan_speed(make_recipe(gpus=48)).flops_per_second
    assert slower == pytest.approx(64 / 96 * 48 * 989.4e12 * 0.5)


def test_a_plan_says_what_fits():
    assert (
        "it fits into 80 GiB if layers are computed again"
        in make_plan(make_recipe("distill.rows_per_microbatch=8"), LLAMA).text()
    )
    small = make_plan(make_recipe(gpu="rtx-4090", gpus=2), LLAMA).text()
    assert "more than 24 GiB: take more GPUs" in small
    assert (
        "all activations fit into 139 GiB too"
        in make_plan(make_recipe(gpu="h200", gpus=64), LLAMA).text()
    )


def test_a_plan_with_a_machine_reads_back_what_it_wrote():
    plan = make_plan(make_recipe("sft.tokens=1B", price=1.5), LLAMA)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_without_a_machine_two_cores_are_planned_for():
    plan = make_plan(load_recipe("tiny"), ModelShape.read("shipped"))
    assert plan.speed.flops_per_second == FLOPS_PER_SECOND
    assert plan.speed.gpus == 0 and plan.stages[0].memory is None
    assert "GPU" not in plan.text()


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({"gpu": "h100-smx"}, "is not one of the gpus. Did you mean h100-sxm"),
        ({"gpu": "mine", "peak_flops": 1e15}, "or give peak_flops and memory too"),
        ({"gpus": 65}, "h8 has 64 rows in a step for 65 GPUs"),
        ({"gpus": 0}, "gpus"),
        ({"mfu": "140%"}, "between 0% and 100%"),
        ({"mfu": 0}, "nothing would ever be done"),
        ({"memory": "80GB"}, "not a number of bytes"),
        ({"speed": 1}, "speed"),
    ],
    ids=str,
)
def test_a_machine_that_cannot_be_is_refused(machine, message):
    with pytest.raises(RecipeError, match=message):
        make_recipe(**machine)


def test_every_known_gpu_has_a_memory_and_a_peak():
    for peak, memory in GPUS.values():
        assert 1e14 < peak < 1e16 and parse_bytes(memory) >= 24 * 2**30
