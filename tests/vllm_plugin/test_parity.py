"""Folders of this package in vLLM: the numbers and the greedy continuations of our own model."""

import pytest

from tests.vllm_plugin.folders import VOCAB, make_student
from tests.vllm_plugin.serving import Work, ask, check, get_python, make_prompts


def turn(kind, **more):
    """Return rotary positions of a kind for twice and more of the context they were made for."""
    rope = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0, **more}
    if kind != "linear":
        rope["original_max_position_embeddings"] = 128
    return {"rope_parameters": rope}


PUBLISHED = {"repeat": "state", "dt_bias": "twice", "step_rank": 5}
CASES = {
    "every mixer": (
        "llama",
        "attention mamba1 mamba2 gated_delta sliding identity attention",
        {"sliding": {"window": 24, "sinks": 3}},
        {},
    ),
    "mistral": (
        "mistral",
        "attention mamba1 attention sliding",
        {"mamba1": PUBLISHED, "sliding": {"window": 150, "sinks": 0}},
        {"sliding_window": 40, "head_dim": 64},
    ),
    "qwen2": (
        "qwen2",
        "attention mamba2 mamba1 attention",
        {"mamba2": {"expand": 2, "state_size": 16}, "mamba1": {"conv_width": 3}},
        {"tie_word_embeddings": True},
    ),
    "qwen3": (
        "qwen3",
        "attention gated_delta gated_delta mamba2 attention",
        {"gated_delta": {"expand": 2, "conv_bias": True}},
        {},
    ),
    "no attention": ("llama", "mamba1 mamba2 mamba1", {}, {}),
    "attention only": ("llama", "attention identity", {}, {"attention_bias": True}),
    "granite": ("granite", "attention mamba1 attention", {}, {}),
    "smollm3": ("smollm3", "attention attention mamba2 sliding", {"sliding": {"window": 1}}, {}),
    "olmo2": ("olmo2", "attention mamba1 attention", {}, {}),
    "linear positions": ("llama", "attention mamba1", {}, turn("linear")),
    "llama3 positions": (
        "llama",
        "attention sliding",
        {},
        turn("llama3", low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    "yarn positions": ("qwen2", "attention sliding", {}, turn("yarn")),
    "phi3": ("phi3", "attention mamba1 attention sliding", {}, {}),
}
"""Name -> family, mixers, their options, changes of the teacher."""
ALONE = (0, 3, 6)
"""Which of the prompts are also asked one at a time."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    get_python()
    root = tmp_path_factory.mktemp("students")
    return {
        name: make_student(root / name, family, mixers, options, **changes)
        for name, (family, mixers, options, changes) in CASES.items()
    }


@pytest.fixture(scope="module")
def prompts():
    return make_prompts(VOCAB) + make_prompts(VOCAB, seed=6)


@pytest.fixture(scope="module")
def answers(folders, prompts):
    """All prompts at once, 16 sequences in chunks of 128 tokens, and then some of them alone."""
    rounds = [prompts, *([prompts[number]] for number in ALONE)]
    made = ask([Work(folder, rounds) for folder in folders.values()])
    return dict(zip(folders, made, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_served_as_it_was_trained(name, folders, prompts, answers):
    assert not isinstance(answers[name], str), answers[name]
    together, *alone = answers[name]
    check(folders[name], prompts, together)
    for number, answer in zip(ALONE, alone, strict=True):
        assert answer[0]["ids"] == together[number]["ids"]
