"""Exports in the classes of transformers, served by vLLM's own layers, without our plugin's."""

import json

import pytest

from hybridize.core.exports import check_fit
from hybridize.exports import stock
from hybridize.models.loading import load_model
from hybridize.models.model import Model
from tests.vllm_plugin.folders import VOCAB, make_student
from tests.vllm_plugin.serving import Work, ask, check, get_python, make_prompts

HYBRID = "attention mamba2 mamba2 attention mamba2"
CASES = {
    "llama": ("llama", HYBRID, {}, {"width": 128}),
    "expand": ("llama", HYBRID, {"mamba2": {"expand": 2}}, {"width": 128}),
    "biases": ("qwen2", HYBRID, {}, {"width": 128}),
    "narrow heads": ("mistral", HYBRID, {}, {"width": 256}),
    "teacher": ("qwen3", "attention attention", {}, {}),
}
"""Name -> family, mixers, their options, changes of the teacher; heads are 4 of 32."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    get_python()
    root, made = tmp_path_factory.mktemp("stock"), {}
    for name, (family, mixers, options, changes) in CASES.items():
        student = make_student(root / f"own {name}", family, mixers, options, **changes)
        assert check_fit(json.loads((student / "config.json").read_text()), "stock") == []
        written = root / name
        written.mkdir()
        stock.write(Model(name, load_model(student), None), written, None)
        made[name] = (student, written)
    return made


@pytest.fixture(scope="module")
def answers(folders):
    prompts = make_prompts(VOCAB)
    made = ask([Work(written, [prompts]) for _, written in folders.values()])
    return dict(zip(folders, made, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_stock_folder_is_served_as_the_student_was_trained(name, folders, answers):
    assert not isinstance(answers[name], str), answers[name]
    check(folders[name][0], make_prompts(VOCAB), answers[name][0])
