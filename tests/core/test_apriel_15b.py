"""Apriel-15B-Thinker and its students at full size: counted, and built on the meta device.

Parameters and cache bytes are those told of Apriel-H1 (arXiv 2511.02651): a bfloat16 key or value
takes 2 bytes; the state of the recurrence is float32 here, 65,536 values a layer, and of the 4,096
channels of the convolution the last three inputs are kept, not four.
"""

import json

import pytest
import torch

from hybridize.core.layout import Layout
from hybridize.core.shape import ModelShape
from tests.test_architecture import (
    TORCH,
    imported,
    least_seconds_to_start,
    seconds_to_start_here,
    start,
)

CONFIG = {
    "model_type": "mistral",
    "num_hidden_layers": 50,
    "hidden_size": 5120,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 14336,
    "vocab_size": 131072,
    "max_position_embeddings": 65536,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPTIONS = {"mamba1": {"state_size": 16, "conv_width": 4, "repeat": "state", "dt_bias": "twice"}}
H25 = (*range(20, 26), 27, *range(30, 34), *range(35, 48), 49)
H30 = (3, 5, 6, 7, 8, *H25)
CONVERTED = {
    "teacher": (),
    "h25": H25,
    "h27": (3, 5, *H25),
    "h30": H30,
    # Which layers these have is not published; all are alike, so that any count the same.
    "h34": (*range(9, 13), *H30),
    "h37": (*range(9, 16), *H30),
    "h40": (*range(9, 19), *H30),
}
BILLIONS = {
    "teacher": 14.97,
    "h25": 15.57,
    "h27": 15.62,
    "h30": 15.69,
    "h34": 15.79,
    "h37": 15.86,
    "h40": 15.93,
}
KEYS_OF_A_TOKEN = {"teacher": 200, "h25": 100, "h30": 80, "h40": 40}
"""KiB of keys and values."""
STATE_OF_A_LAYER = 65_536 * 4 + 4096 * 3 * 2
SHAPE = ModelShape.from_config(CONFIG)


def layout_of(name: str) -> Layout:
    return SHAPE.layout().convert(CONVERTED[name], to="mamba1")


@pytest.fixture(scope="module")
def build():
    from hybridize.models import HybridConfig, HybridForCausalLM
    from hybridize.models.families import find_family

    def make(name: str, **changes: object) -> HybridForCausalLM:
        teacher = find_family("mistral").config(**CONFIG | changes)
        mixers = list(layout_of(name).mixers)[: teacher.num_hidden_layers]
        options = OPTIONS if "mamba1" in mixers else {}
        with torch.device("meta"):
            return HybridForCausalLM(
                HybridConfig(teacher=teacher, mixers=mixers, mixer_options=options)
            )

    return make


@pytest.mark.parametrize("name", CONVERTED)
def test_parameters_are_the_published_ones_and_those_of_the_module(name, build):
    assert len(CONVERTED[name]) == int(name.removeprefix("h") if name != "teacher" else 0)
    counted = SHAPE.parameters(layout_of(name), OPTIONS)
    assert round(counted / 1e9, 2) == BILLIONS[name]
    model = build(name)
    assert counted == sum(weight.numel() for weight in model.parameters())
    assert model.layout == layout_of(name)


def test_a_converted_layer_has_the_tensors_of_the_published_checkpoints(build):
    shapes = {
        name: tuple(weight.shape)
        for name, weight in build("h30").model.layers[49].mixer.named_parameters()
    }
    assert shapes == {
        "in_proj.weight": (10240, 5120),
        "dt_in_proj.weight": (320, 5120),
        "dt_proj.weight": (4096, 320),
        "dt_proj.bias": (4096,),
        "conv1d.weight": (4096, 1, 4),
        "conv1d.bias": (4096,),
        "A_log": (4096, 16),
        "D": (4096,),
        "out_proj.weight": (5120, 4096),
    }
    mixers = {kind: SHAPE.mixer_parameters(kind, OPTIONS) for kind in ("attention", "mamba1")}
    assert mixers["attention"] == 52_428_800
    assert round(mixers["mamba1"] / 1e6, 2) == 76.44
    assert round((mixers["mamba1"] - mixers["attention"]) / 1e6, 1) == 24.0


@pytest.mark.parametrize("name", CONVERTED)
def test_a_token_keeps_its_keys_and_a_sequence_its_states(name):
    layout = layout_of(name)
    at = {tokens: SHAPE.cache_bytes(layout, tokens, options=OPTIONS) for tokens in (0, 1, 16_384)}
    assert at[0] == len(layout.converted) * STATE_OF_A_LAYER
    assert at[1] - at[0] == len(layout.layers("attention")) * 4096
    assert at[16_384] - at[0] == 16_384 * (at[1] - at[0])
    if name in KEYS_OF_A_TOKEN:
        assert at[1] - at[0] == KEYS_OF_A_TOKEN[name] * 1024
    if name == "teacher":
        assert at[16_384] == 3.125 * 2**30


@pytest.mark.parametrize("name", ["teacher", "h30", "h40"])
def test_the_cache_of_the_module_has_the_counted_bytes(name, build):
    """The forward pass runs on the meta device, in which nothing is computed but shapes."""
    from hybridize.models import cache_bytes

    model = build(name).to(torch.bfloat16)
    cache = model.make_cache()
    ids = torch.zeros(1, 5, dtype=torch.long, device="meta")
    model(ids, past_key_values=cache, use_cache=True)
    expected = SHAPE.cache_bytes(layout_of(name), 5, options=OPTIONS)
    assert cache_bytes(cache) == expected


@pytest.fixture
def teacher(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.mark.parametrize("command", [("check",), ("plan", "--json")], ids=" ".join)
def test_the_shipped_recipe_is_planned_from_a_config_without_torch(command, teacher):
    name, *options = command
    arguments = ["-m", "hybridize", name, "apriel-h1-15b", "--set", f"teacher.model={teacher}"]
    _, traced = start("-X", "importtime", *arguments, *options)
    assert traced.returncode == 0, traced.stderr[-500:]
    assert not TORCH & imported(traced.stderr)


@pytest.mark.parametrize("command", [("check",), ("plan", "--json")], ids=" ".join)
def test_the_shipped_recipe_is_planned_fast(command, teacher):
    name, *options = command
    arguments = ["-m", "hybridize", name, "apriel-h1-15b", "--set", f"teacher.model={teacher}"]
    seconds = least_seconds_to_start(*arguments, *options)
    assert seconds <= seconds_to_start_here(), f"{seconds:.2f} s"


def test_the_shipped_recipe_says_what_is_known_of_the_paper(teacher):
    from hybridize.core.plan import make_plan
    from hybridize.core.recipe import load_recipe

    recipe = load_recipe("apriel-h1-15b", [f"teacher.model={teacher}"])
    plan = make_plan(recipe, ModelShape.read(teacher))
    assert [stage.converted for stage in plan.stages] == [25, 27, 30, 34, 37, 40]
    assert recipe.distill.tokens_per_step == 64 * 16_384
    assert recipe.distill.optimizer.lr == 5e-6 and recipe.distill.loss == {"reverse_kl": 1.0}
    assert recipe.distill.train == ("all",)
    told, so_far = {}, 0
    for stage in plan.stages:
        so_far += stage.tokens
        told[stage.name] = round(so_far / 1e9, 1)
    assert (told["h30"], told["h34"], told["h37"], told["h40"]) == (37.0, 63.0, 89.0, 136.5)
    for stage, parameters in zip(plan.stages, list(BILLIONS.values())[1:], strict=True):
        assert round(stage.parameters / 1e9, 2) == parameters


def test_the_whole_plan_is_printed_from_a_config(teacher):
    from typer.testing import CliRunner

    from hybridize.cli.app import app

    arguments = ["plan", "apriel-h1-15b", "--stage", "h30", "--set", f"teacher.model={teacher}"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "15,694,627,840" in done.output and "a GPU" in done.output
