"""What fits where is decided from config.json alone, and what does not fit is told what would."""

import re

import pytest

from hybridize.core.errors import ModelError
from hybridize.core.exports import TARGETS, best_format, check_fit, find_target, read_rope
from hybridize.core.families import FAMILIES
from hybridize.stages.export import FORMATS, READERS

TEACHER = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 64,
    "max_position_embeddings": 512,
}


def student(mixers: str, options: dict | None = None, **changes: object) -> dict:
    kinds = {"A": "attention", "M": "mamba2", "m": "mamba1", "G": "gated_delta", "W": "sliding"}
    return {
        "model_type": "hybridize",
        "teacher": TEACHER | changes,
        "mixers": [kinds[letter] for letter in mixers],
        "mixer_options": options or {},
    }


FITS = {
    "teacher": (TEACHER, "teacher"),
    "every family": ({**TEACHER, "model_type": "phi3"}, "teacher"),
    "mamba2": (student("AMAM"), "granite"),
    "qwen2": (student("AMAM", model_type="qwen2"), "granite"),
    "wide Apriel": (
        student("AMAM", model_type="mistral", hidden_size=64, head_dim=8, sliding_window=None),
        "granite",
    ),
    "window where converted": (
        student(
            "AMAM",
            model_type="qwen2",
            use_sliding_window=True,
            sliding_window=8,
            layer_types=["full_attention", "sliding_attention"] * 2,
        ),
        "granite",
    ),
    "older rope": (
        student("AMAM", rope_theta=1e6, rope_scaling={"type": "linear", "factor": 2.0}),
        "granite",
    ),
    "gated delta": (student("AGAG", model_type="qwen3", head_dim=16), "qwen3_5"),
    "sliding": (student("WWWW", {"sliding": {"sinks": 0}}, mlp_bias=True), "granite_swa"),
}


@pytest.mark.parametrize("name", FITS)
def test_what_fits_has_no_reasons(name):
    config, target = FITS[name]
    assert check_fit(config, "stock") == []
    assert find_target(config) == target and best_format(config) == "stock"
    assert check_fit(config, "hybridize") == []


REFUSED = {
    "mamba1": (student("AmAm"), "has layers of mamba1 .*: convert to mamba2, or use --format h"),
    "qwen3 mamba1": (student("AmAm", model_type="qwen3"), "mamba1 .*convert to gated_delta"),
    "sliding on qwen3": (
        student("AWAW", {"sliding": {"sinks": 0}}, model_type="qwen3", head_dim=8),
        "family qwen3, .*: convert to gated_delta",
    ),
    "sinks": (student("AWAW"), "keep 4 first tokens in sight, .*: convert with sinks: 0"),
    "another window": (
        student("AWAW", {"sliding": {"sinks": 0}}, model_type="mistral", sliding_window=8),
        "slides over 8 tokens, and that of GraniteSWAForCausalLM slides over 128",
    ),
    "two kinds": (student("AMAm"), "mamba1, mamba2, and no class .* has them together"),
    "no attention": (student("MMMM"), "keep one attention layer, or use --format hybridize"),
    "no attention left": (student("GGGG", model_type="qwen3"), "keep one attention layer"),
    "qwen3": (
        student("AMAM", model_type="qwen3", head_dim=8),
        "family qwen3, .* convert to gated_delta",
    ),
    "llama gated": (student("AGAG"), "family llama, .*holds qwen3: convert to mamba2"),
    "olmo2": (student("AMAM", model_type="olmo2"), "family olmo2, .*granite: use --format h"),
    "window": (
        student("AMAM", model_type="mistral", sliding_window=8),
        "attention of layer 0 slides over 8 tokens",
    ),
    "MLP bias": (student("AMAM", mlp_bias=True), "its MLP has biases"),
    "activation": (student("AMAM", hidden_act="gelu"), "its activation is gelu"),
    "dynamic": (
        student("AMAM", rope_parameters={"rope_type": "dynamic", "factor": 2.0}),
        "rotary positions are dynamic, and only default, linear, llama3, yarn",
    ),
    "part of a head": (
        student("AMAM", rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
        "rotary positions are on part of a head",
    ),
    "wide heads": (student("AMAM", model_type="mistral", head_dim=16), "vLLM would take hidden"),
    "wide conv": (student("AMAM", {"mamba2": {"conv_width": 5}}), "conv_width 5, .* 2 to 4"),
    "conv bias": (
        student("AGAG", {"gated_delta": {"conv_bias": True}}, model_type="qwen3"),
        "has conv_bias, .*: convert with conv_bias: false",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_told_what_would(name):
    config, message = REFUSED[name]
    config["teacher"].setdefault("sliding_window", None)
    reasons = check_fit(config, "stock")
    assert len(reasons) == 1 and re.search(message, reasons[0]), reasons
    assert "--format" in reasons[0] and "\n" not in reasons[0]
    assert best_format(config) == "hybridize" and check_fit(config, "hybridize") == []


def test_all_reasons_are_listed():
    config = student("MMMM", {"mamba2": {"conv_width": 5}}, mlp_bias=True, hidden_act="gelu")
    assert len(check_fit(config, "stock")) == 4


GGUF = {
    "mamba2": (student("AMAM"), None),
    "no attention": (student("MMMM"), "keep one attention layer"),
    "wide heads": (student("AMAM", model_type="mistral", head_dim=16, sliding_window=None), None),
    "gated delta": (
        student("AGAG", model_type="qwen3"),
        "layers are gated_delta, and granitehybrid",
    ),
    "unconverted": ({**TEACHER, "model_type": "qwen3"}, None),
    "a family llama.cpp lacks": (
        {**TEACHER, "model_type": "olmo2"},
        "the family olmo2, and llama.cpp holds llama, mistral, granite, qwen2, qwen3: use --format",
    ),
    "no frequencies": (
        {**TEACHER, "model_type": "qwen3", "rope_scaling": {"type": "yarn", "factor": 2.0}},
        "qwen3 of llama.cpp takes no frequencies",
    ),
}


@pytest.mark.parametrize("name", GGUF)
def test_the_head_width_is_free_in_gguf(name):
    config, message = GGUF[name]
    reasons = check_fit(config, "gguf")
    assert (message is None and not reasons) or (len(reasons) == 1 and message in reasons[0])


def test_an_unknown_family_is_an_error():
    with pytest.raises(ModelError, match="'gpt_neox' is not a known family"):
        check_fit({**TEACHER, "model_type": "gpt_neox"}, "stock")


def test_both_spellings_of_rope_are_read():
    new = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5.0, "factor": 2.0}}
    old = {"rope_theta": 5.0, "rope_scaling": {"type": "yarn", "factor": 2.0}}
    assert read_rope(new) == read_rope(old) == new["rope_parameters"]
    assert read_rope({}) == {"rope_type": "default", "rope_theta": 10_000.0}


def test_every_format_is_in_the_table_and_has_its_readers():
    assert set(FORMATS) == {target.format for target in TARGETS.values()} == set(READERS)
    for target in TARGETS.values():
        assert set(target.teachers) <= set(FAMILIES)
