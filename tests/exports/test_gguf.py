"""GGUF files as they are on disk; what llama.cpp makes of them is in tests/engines."""

import re
import sys

import numpy as np
import pytest
import torch

from hybridize.core.errors import MachineError, ModelError
from hybridize.core.exports import check_fit
from hybridize.core.gguf_header import get_size, read_gguf_header
from hybridize.exports import gguf as writer
from hybridize.exports.gguf_tensors import (
    find_mixer_sizes,
    interleave,
    pad_mixer,
    pad_sizes,
)
from hybridize.models.mixers.base import MixerContext, MixerShape
from hybridize.models.mixers.mamba2 import Mamba2
from tests.exports.gguf_cases import CASES, make_model

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")


def read(folder):
    reader = gguf.GGUFReader(folder / writer.FILE)
    return {tensor.name: tensor for tensor in reader.tensors}


def values(tensor):
    return gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type)


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_written_once_and_the_keys_agree_with_them(name, tmp_path):
    model = make_model(**CASES[name])
    writer.write(model, tmp_path, "float32")
    tensors, header = read(tmp_path), read_gguf_header(tmp_path / writer.FILE)
    config = model.network.config
    expected = len(model.network.state_dict()) - bool(config.tie_word_embeddings)
    assert len(tensors) - ("rope_freqs.weight" in tensors) == expected
    assert get_size(header, "embedding_length") == config.hidden_size
    assert get_size(header, "context_length") == config.max_position_embeddings
    inner = get_size(header, "ssm.inner_size")
    assert inner in (None, 2 * config.hidden_size)
    if inner:
        assert tuple(tensors["blk.0.ssm_out.weight"].shape) == (inner, config.hidden_size)
        kinds = [0 if kind == "mamba2" else config.num_key_value_heads for kind in config.mixers]
        assert header["granitehybrid.attention.head_count_kv"] == kinds


def test_weights_come_back_as_they_were(tmp_path):
    model = make_model()
    writer.write_unpadded(model, tmp_path, "float32")
    tensors, state = read(tmp_path), model.network.state_dict()
    written = values(tensors["blk.0.ssm_in.weight"])
    assert np.array_equal(written, state["model.layers.0.mixer.in_proj.weight"].numpy())
    decay = -torch.exp(state["model.layers.0.mixer.A_log"])
    assert np.allclose(values(tensors["blk.0.ssm_a"])[:, 0], decay.numpy())
    assert get_size(read_gguf_header(tmp_path / writer.FILE), "ssm.inner_size") == 32


@pytest.mark.parametrize(
    ("dtype", "allowed"), [("float16", 1e-3), ("bfloat16", 1e-2), ("q8_0", 2e-2)]
)
def test_matrices_are_narrowed_and_the_rest_is_not(dtype, allowed, tmp_path):
    model = make_model()
    writer.write(model, tmp_path, dtype)
    tensors, state = read(tmp_path), model.network.state_dict()
    matrix = tensors["blk.1.ffn_gate.weight"]
    assert matrix.tensor_type.name == writer.TYPES[dtype]
    wanted = state["model.layers.1.mlp.gate_proj.weight"].numpy()
    assert np.abs(values(matrix) - wanted).max() <= allowed
    for name in (
        "blk.0.ssm_conv1d.weight",
        "blk.0.ssm_norm.weight",
        "blk.0.ssm_a",
        "blk.1.attn_norm.weight",
    ):
        assert tensors[name].tensor_type.name == "F32"


def test_rows_that_a_scale_does_not_divide_stay_float32(tmp_path):
    writer.write(make_model(intermediate_size=40), tmp_path, "q8_0")
    tensors = read(tmp_path)
    assert tensors["blk.1.ffn_down.weight"].tensor_type.name == "F32"
    assert tensors["blk.1.ffn_up.weight"].tensor_type.name == "Q8_0"


def test_pairs_of_neighbours_turn_as_the_halves_did():
    heads, width = 2, 6
    rows = torch.arange(heads * width)[:, None]
    assert interleave(rows, heads)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert interleave(rows[:, 0], heads).tolist() == interleave(rows, heads)[:, 0].tolist()


@pytest.mark.parametrize("expand", [1, 2])
def test_zero_heads_in_groups_of_their_own_change_nothing(expand):
    """A mixer as wide as the padded one, with its tensors, computes what the narrow one does."""
    shape = MixerShape(
        hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8, norm_eps=1e-5, make_attention=None
    )
    wide_shape = MixerShape(
        hidden_size=32, num_heads=12, num_kv_heads=2, head_dim=8, norm_eps=1e-5, make_attention=None
    )
    narrow, wide = Mamba2(shape, 0, expand=expand), Mamba2(wide_shape, 0, expand=expand)
    sizes = find_mixer_sizes(narrow)
    padded = pad_sizes(sizes, 12 * 8 * expand)
    names = {
        **{"in_proj.weight": "ssm_in.weight", "conv1d.weight": "ssm_conv1d.weight"},
        **{"conv1d.bias": "ssm_conv1d.bias", "dt_bias": "ssm_dt.bias", "A_log": "ssm_a"},
        **{"D": "ssm_d", "norm.weight": "ssm_norm.weight", "out_proj.weight": "ssm_out.weight"},
    }
    state = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
        for name, tensor in narrow.state_dict().items()
    }
    narrow.load_state_dict(state)
    wide.load_state_dict(
        {name: pad_mixer(names[name], tensor, sizes, padded) for name, tensor in state.items()}
    )
    hidden_BTD = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
    ctx = MixerContext(
        positions_BT=None, rope=None, masks={}, segments_BT=None, documents=None, cache=None
    )
    with torch.no_grad():
        assert torch.allclose(narrow(hidden_BTD, ctx), wide(hidden_BTD, ctx), atol=1e-6)


def test_a_width_that_no_number_of_groups_reaches_is_refused(tmp_path):
    model = make_model(width=40, head_dim=12, heads=4)
    with pytest.raises(ModelError, match="no number of groups is 80 wide"):
        writer.write(model, tmp_path, "float32")
    writer.write_unpadded(model, tmp_path, "float32")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"family": "qwen3"}, "its teacher is of the family qwen3"),
        ({"family": "olmo2", "converted": ()}, "its teacher is of the family olmo2"),
        ({"family": "mistral", "sliding_window": 16}, "the attention of layer . slides over 16"),
        ({"converted": (0, 1, 2, 3)}, "no layer is attention"),
        ({"hidden_act": "gelu"}, "its activation is gelu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rotary positions are dynamic",
        ),
        (
            {
                "family": "qwen2",
                "converted": (),
                "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
            },
            "qwen2 of llama.cpp takes no frequencies",
        ),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused(arguments, reason, tmp_path):
    with pytest.raises(ModelError, match=reason):
        writer.write(make_model(**arguments), tmp_path, "float32")
    config = make_model(**arguments).network.config.to_dict()
    (told,) = check_fit(config, "gguf")
    assert re.search(reason, told) and "use --format" in told
    assert not list(tmp_path.iterdir())


def test_an_unknown_type_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(ModelError, match="llama-quantize"):
        writer.write(make_model(), tmp_path, "q4")


def test_values_that_float16_cannot_hold_are_refused(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.network.model.layers[1].mlp.up_proj.weight[0, 0] = 1e6
    with pytest.raises(ModelError, match="Use --dtype bfloat16"):
        writer.write(model, tmp_path, "float16")


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MachineError, match=r"hybridize\[gguf\]"):
        writer.write(make_model(), tmp_path, None)


def test_the_header_of_something_else_is_refused(tmp_path):
    file = tmp_path / "a.gguf"
    for content, reason in (
        (b"PK..", "not a GGUF"),
        (b"GGUF" + b"\3\0\0\0" + 8 * b"\0", "damaged"),
    ):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=reason):
            read_gguf_header(file)
    with pytest.raises(ModelError, match="cannot be read"):
        read_gguf_header(tmp_path / "none.gguf")
