"""Published Apriel-H1 checkpoints in vLLM, as they are: the official numbers, and other forms."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.models.apriel import FIXTURE, Form, make_checkpoint
from tests.vllm_plugin.serving import Work, ask, check, get_python, make_prompts

VOCABULARY = 101
SHAPE = Form(vocabulary=VOCABULARY, hidden=80, heads=4, kv_heads=2, head_dim=32, state=16, rank=5)
"""That of the fixture."""
FORMS = {
    "fresh": SHAPE,
    "joint": Form(**(vars(SHAPE) | {"joint": True, "rank": 3})),
    "left-out": Form(**(vars(SHAPE) | {"codes": ("t", "i", "m2", "t")})),
    "biases": Form(
        **(vars(SHAPE) | {"biases": ("conv1d", "dt_proj", "in_proj", "dt_in_proj", "out_proj")})
    ),
    "no-attention": Form(**(vars(SHAPE) | {"codes": ("m2", "m2")})),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    get_python()
    root = tmp_path_factory.mktemp("published")
    more = {"max_position_embeddings": 512}
    (root / "fixture").mkdir()
    for name in ("config.json", "model.safetensors"):  # vLLM reads every safetensors file there is
        shutil.copy(FIXTURE / name, root / "fixture")
    return {"fixture": root / "fixture"} | {
        name: make_checkpoint(root / name, Form(**(vars(form) | {"config": more})), seed=9)
        for name, form in FORMS.items()
    }


@pytest.fixture(scope="module")
def expected():
    return load_file(FIXTURE / "expected.safetensors")


@pytest.fixture(scope="module")
def answers(folders, expected):
    prompts = make_prompts(VOCABULARY)
    rows = expected["input_ids"].tolist()
    rounds = {"fixture": [rows, *([row] for row in rows)]}
    made = ask([Work(folder, rounds.get(name, [prompts])) for name, folder in folders.items()])
    return dict(zip(folders, made, strict=True))


def test_the_official_ids_come_out(answers, expected):
    assert not isinstance(answers["fixture"], str), answers["fixture"]
    together, *alone = answers["fixture"]
    prefill = expected["prefill_logits"].double().log_softmax(-1)
    decode = expected["decode_logits"].double().log_softmax(-1)
    for row, wanted in enumerate(expected["greedy_ids"].tolist()):
        for answer in (together[row], alone[row][0]):
            assert answer["ids"][: len(wanted)] == wanted
            told = prefill[row, :-1].gather(1, expected["input_ids"][row, 1:, None])[:, 0]
            assert np.abs(np.array(answer["prompt"]) - told.numpy()).max() < 1e-4
            # The first of the new tokens comes from the last of the prompt's logits.
            places = torch.cat([prefill[row, -1:], decode[row]])[: len(wanted)]
            made = np.array(answer["places"])[: len(places)]
            assert np.abs(made - places.numpy()).max() < 1e-4
    check(FIXTURE, expected["input_ids"].tolist(), together)


@pytest.mark.parametrize("name", FORMS)
def test_a_published_form_is_served(name, folders, answers):
    assert not isinstance(answers[name], str), answers[name]
    check(folders[name], make_prompts(VOCABULARY), answers[name][0])
