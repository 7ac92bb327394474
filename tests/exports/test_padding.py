"""Zero heads: how many, and that they change nothing."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridize.core.exports import check_fit
from hybridize.core.padding import Heads, plan_heads
from hybridize.core.shape import ModelShape
from hybridize.exports.padding import pad_attention, pad_mamba2
from hybridize.models.mixers import MixerContext
from tests.exports.students import make_student


def make_config(hidden: int, heads: int, kv_heads: int, width: int) -> dict:
    return {
        "model_type": "mistral",
        "num_hidden_layers": 2,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width,
        "intermediate_size": 64,
        "vocab_size": 64,
        "max_position_embeddings": 64,
        "sliding_window": None,
    }


@pytest.mark.parametrize(
    ("sizes", "planned"),
    [
        ((5120, 32, 8, 128), (40, 8, 8, 5)),  # Apriel, Mistral-Nemo
        ((4096, 32, 8, 128), (32, 8, 0, 4)),
        ((96, 8, 4, 8), (12, 4, 4, 3)),
        ((72, 8, 4, 8), None),  # nine heads are three groups of three, fewer than four
        ((80, 8, 4, 8), (10, 5, 2, 2)),
        ((32, 4, 2, 16), None),
        ((40, 4, 2, 16), None),
    ],
)
def test_the_plan_is_the_one_with_the_fewest_key_heads(sizes, planned):
    found = plan_heads(ModelShape.from_config(make_config(*sizes)))
    heads = None
    if planned is not None:
        num_heads, num_kv_heads, added, per_group = planned
        heads = Heads(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            added_heads=added,
            per_group=per_group,
        )
    assert found == heads


@given(
    kv_heads=st.integers(1, 8),
    per_group=st.integers(1, 4),
    wanted=st.integers(1, 64),
)
def test_a_plan_fills_the_hidden_size_and_loses_no_head(kv_heads, per_group, wanted):
    config = make_config(wanted * 8, kv_heads * per_group, kv_heads, 8)
    found = plan_heads(ModelShape.from_config(config))
    if found is None:
        reasons = check_fit({"teacher": config, "mixers": ["attention", "mamba2"]}, "stock")
        assert "answer wrongly: use --format gguf" in reasons[0]
        return
    assert found.num_heads == wanted == found.num_kv_heads * found.per_group
    assert found.num_kv_heads >= kv_heads and found.per_group >= per_group
    if wanted == kv_heads * per_group:
        assert found.added_heads == 0 and found.num_kv_heads == kv_heads


def test_zero_heads_stand_behind_those_of_their_group():
    heads = Heads(num_heads=9, num_kv_heads=3, added_heads=5, per_group=3)
    tensors = {
        "a.q_proj.weight": torch.arange(1.0, 9)[:, None].repeat(1, 6),
        "a.q_proj.bias": torch.arange(1.0, 9),
        "a.k_proj.weight": torch.ones(4, 6),
        "a.v_proj.weight": torch.ones(4, 6),
        "a.o_proj.weight": torch.arange(1.0, 9).repeat(6, 1),
    }
    pad_attention(tensors, "a", heads, num_kv_heads=2)
    rows = [1.0, 2, 3, 4, 0, 0, 5, 6, 7, 8, *[0] * 8]
    assert tensors["a.q_proj.weight"][:, 0].tolist() == rows
    assert tensors["a.q_proj.bias"].tolist() == rows
    assert tensors["a.o_proj.weight"][0].tolist() == rows
    assert tensors["a.k_proj.weight"][:, 0].tolist() == [1.0] * 4 + [0.0] * 2


@pytest.mark.parametrize("expand", [1, 2])
def test_zero_groups_add_exactly_nothing(expand):
    mixer = make_student(options={"expand": expand}).network.model.layers[1].mixer
    tensors = {f"m.{name}": tensor for name, tensor in mixer.state_dict().items()}
    pad_mamba2(tensors, "m", num_groups=4, wanted_groups=7, state_size=mixer.state_size)
    wide = type(mixer)(replace(mixer.shape, num_heads=7), 1, expand=expand)
    wide.load_state_dict({name.removeprefix("m."): tensor for name, tensor in tensors.items()})
    hidden_BTD = torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(0))
    positions_BT = torch.arange(40)[None]
    ctx = MixerContext(positions_BT=positions_BT, rope=(positions_BT, positions_BT), masks={})
    with torch.no_grad():
        assert torch.allclose(wide(hidden_BTD, ctx), mixer(hidden_BTD, ctx), atol=1e-6)
