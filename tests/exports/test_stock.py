"""Every family and option that fits a class of transformers computes the same numbers there."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from hybridize.core.exports import TARGETS, check_fit, find_target
from hybridize.exports.stock import write
from hybridize.models.model import Model
from tests.exports.students import FITTING, make_student
from tests.tiny import tokens

LARGEST = 1e-4
CLASSES = {
    "M": "GraniteMoeHybridForCausalLM",
    "G": "Qwen3_5ForCausalLM",
    "W": "GraniteSWAForCausalLM",
}


def load_plainly(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def compare(model: Model, folder, num_tokens: int = 270) -> float:
    """Return the greatest difference of a logit, over two rows and the scan's chunk of 256."""
    ids = tokens(2, num_tokens)
    with torch.no_grad():
        return float((load_plainly(folder)(ids).logits - model.network(ids).logits).abs().max())


@pytest.mark.parametrize("name", FITTING)
def test_the_class_computes_what_the_student_does(name, tmp_path):
    model = make_student(**FITTING[name])
    config = model.network.config.to_dict()
    assert check_fit(config, "stock") == []
    write(model, tmp_path, None)
    deviation = compare(model, tmp_path)
    assert deviation < LARGEST, f"{deviation:.1e}"
    letter = next((letter for letter in CLASSES if letter in str(model.layout)), None)
    named = json.loads((tmp_path / "config.json").read_text())["architectures"]
    assert named == [CLASSES[letter] if letter else type(load_plainly(tmp_path)).__name__]
    assert letter or deviation == 0
    assert find_target(config) in TARGETS


@pytest.mark.parametrize("name", ["llama", "mistral-zero-heads", "qwen3", "sliding"])
def test_steps_of_one_token_and_left_padding_agree(name, tmp_path):
    model = make_student(**FITTING[name])
    write(model, tmp_path, None)
    plain, ids = load_plainly(tmp_path), tokens(3, 12)
    mask = torch.ones_like(ids)
    mask[0, :7], mask[1, :3] = 0, 0
    asked = {"attention_mask": mask, "max_new_tokens": 16, "min_new_tokens": 16}
    asked |= {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(plain.generate(ids, **asked), model.network.generate(ids, **asked))


def test_the_config_is_spelled_for_programs_of_every_age(tmp_path):
    model = make_student(rope_parameters={"rope_theta": 12_345.0, "rope_type": "default"})
    write(model, tmp_path, None)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["layer_types"] == ["attention", "mamba", "attention", "mamba"]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 12_345.0
    assert config["rope_scaling"] is None and config["num_local_experts"] == 0
    assert config["mamba_n_groups"] == 4 and config["mamba_expand"] == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_and_decay_is_not(dtype, tmp_path):
    model = make_student()
    write(model, tmp_path, dtype)
    plain = load_plainly(tmp_path)
    state = plain.state_dict()
    decay = "model.layers.1.mamba.A_log"
    assert torch.equal(state[decay], model.network.model.layers[1].mixer.A_log)
    query = model.network.model.layers[0].self_attn.q_proj.weight
    rounded = query.to(getattr(torch, dtype)).float()
    assert torch.equal(state["model.layers.0.self_attn.q_proj.weight"], rounded)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype


def test_a_weight_that_float16_cannot_hold_is_refused(tmp_path):
    model = make_student()
    with torch.no_grad():
        model.network.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match="that float16 cannot hold"):
        write(model, tmp_path, "float16")
    with pytest.raises(ValueError, match="cannot be written as 'int3' in this format"):
        write(model, tmp_path, "int3")
