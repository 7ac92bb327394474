"""Quantised GGUF files: what stays fine, how large they are, and their values in our own class."""

import numpy as np
import pytest
import torch

from hybridize.core.errors import MachineError, ModelError
from hybridize.core.gguf import KEPT_FINE, WRITTEN_QUANTS
from hybridize.engines import llama_quantize
from hybridize.exports import gguf as writer
from hybridize.exports.gguf_back import count_types, read_back
from tests.exports.gguf_cases import CASES, make_model

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

BITS = {"F32": 32, "Q8_0": 8.5, "Q5_1": 6, "Q5_0": 5.5, "Q4_1": 5, "Q4_0": 4.5}
"""Of one value, its part of the scales included."""


def list_tensors(folder):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(folder / writer.FILE).tensors}


def decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    """Decode rows of Q4_0 as llama.cpp lays them out: a float16 scale, then 16 bytes a block, the
    low halves of which are the first 16 values."""
    blocks = blocks.reshape(blocks.shape[0], -1, 18)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
    packed = blocks[..., 2:].astype(np.int32)
    values = np.concatenate([packed & 15, packed >> 4], axis=-1) - 8
    return (values * scales).astype(np.float32).reshape(blocks.shape[0], -1)


@pytest.mark.parametrize("write", [writer.write, writer.write_unpadded], ids=["padded", "as is"])
@pytest.mark.parametrize("name", CASES)
def test_what_was_written_comes_back_as_it_was(name, write, tmp_path):
    model = make_model(**CASES[name])
    write(model, tmp_path, "float32")
    state = read_back(model.network, tmp_path / writer.FILE).state_dict()
    for key, tensor in model.network.state_dict().items():
        assert torch.equal(state[key], tensor), key


def test_four_bits_come_back_as_their_blocks_say(tmp_path):
    model = make_model()
    writer.write(model, tmp_path, "q4_0")
    network = read_back(model.network, tmp_path / writer.FILE)
    stored = list_tensors(tmp_path)
    for name, weight in {
        "blk.1.ffn_gate.weight": network.model.layers[1].mlp.gate_proj.weight,
        "blk.0.ffn_down.weight": network.model.layers[0].mlp.down_proj.weight,
    }.items():
        expected = torch.from_numpy(decode_q4_0(np.array(stored[name].data)))
        assert torch.allclose(weight, expected, atol=1e-7), name
    whole = model.network.model.layers[1].mlp.gate_proj.weight
    rounded = network.model.layers[1].mlp.gate_proj.weight
    # A step is an eighth of the largest value of 32; the far end may be cut by a whole one.
    assert 0 < (whole - rounded).abs().max() <= whole.abs().max() / 8


@pytest.mark.parametrize("dtype", WRITTEN_QUANTS)
def test_a_file_has_the_size_of_its_types(dtype, tmp_path):
    model = make_model()
    writer.write(model, tmp_path, dtype)
    tensors = list_tensors(tmp_path)
    counted = sum(
        int(np.prod(tensor.shape)) * BITS[tensor.tensor_type.name] / 8
        for tensor in tensors.values()
    )
    stored = sum(tensor.n_bytes for tensor in tensors.values())
    assert stored == counted
    assert stored < (tmp_path / writer.FILE).stat().st_size < stored + 64 * 1024
    assert count_types(tmp_path / writer.FILE)[WRITTEN_QUANTS[dtype]] >= 14


def test_attention_embedding_and_head_stay_fine_and_what_is_no_matrix_whole(tmp_path):
    writer.write(make_model(), tmp_path, "q4_0")
    types = {name: one.tensor_type.name for name, one in list_tensors(tmp_path).items()}
    for name, found in types.items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        if part in KEPT_FINE:
            assert found == "Q8_0", name
        elif part in ("ssm_in", "ssm_out", "ffn_gate", "ffn_up", "ffn_down"):
            assert found == "Q4_0", name
        else:
            assert found == "F32", name
    assert {"blk.1.attn_q.weight", "token_embd.weight", "blk.0.ssm_conv1d.weight"} <= set(types)


def test_the_file_of_another_model_is_refused(tmp_path):
    writer.write(make_model(), tmp_path, "q8_0")
    with pytest.raises(ModelError, match="has no tensor blk"):
        read_back(make_model(converted=(1, 3)).network, tmp_path / writer.FILE)
    wide = make_model(intermediate_size=96)
    with pytest.raises(ModelError, match=r"has \d+ values in the GGUF file, and \d+ in the model"):
        read_back(wide.network, tmp_path / writer.FILE)


def test_without_llama_quantize_its_types_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(llama_quantize, "find_program", lambda: None)
    monkeypatch.setattr(llama_quantize.shutil, "which", lambda name: None)
    with pytest.raises(MachineError, match=r"HYBRIDIZE_LLAMA_SERVER.*or use q8_0") as caught:
        writer.write(make_model(), tmp_path, "q4_k_m")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["q6_k", "q4_k_m", "q2_k"])
def test_llama_quantize_makes_its_types_with_the_same_parts_fine(dtype, tmp_path):
    if llama_quantize.find_quantizer() is None:
        pytest.skip("llama-quantize is not installed: its types are not checked")
    model = make_model(width=256, heads=4, head_dim=64)
    writer.write(model, tmp_path, dtype)
    assert [path.name for path in tmp_path.iterdir()] == [writer.FILE]
    types = {name: one.tensor_type.name for name, one in list_tensors(tmp_path).items()}
    for name, found in types.items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        if part in KEPT_FINE:
            assert found == "Q8_0", name
    assert types["blk.0.ssm_in.weight"].endswith("_K")
    assert types["blk.0.ssm_conv1d.weight"] == "F32"
    state = read_back(model.network, tmp_path / writer.FILE).state_dict()
    for key, tensor in model.network.state_dict().items():
        spread = max(float(tensor.std()), 1e-6) if tensor.numel() > 1 else 1.0
        assert (state[key] - tensor).abs().mean() / spread < 0.4, key
