"""Two processes that share the work (tensor parallelism): the same numbers."""

import pytest

from tests.models.apriel import Form, make_checkpoint
from tests.vllm_plugin.folders import VOCAB, make_student
from tests.vllm_plugin.serving import Work, ask, check, get_python, make_prompts
from tests.vllm_plugin.test_apriel_h1 import SHAPE

EVERY = "attention mamba1 mamba2 gated_delta sliding identity attention"
TWO = {"tensor_parallel_size": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    get_python()
    root = tmp_path_factory.mktemp("ranks")
    options = {"sliding": {"window": 24, "sinks": 3}, "gated_delta": {"expand": 2}}
    published = Form(**(vars(SHAPE) | {"config": {"max_position_embeddings": 512}}))
    return {
        "student": make_student(root / "student", "qwen2", EVERY, options),
        "published": make_checkpoint(root / "published", published, seed=9),
    }


def test_two_ranks_compute_what_one_does(folders):
    prompts = make_prompts(VOCAB)
    made = ask([Work(folder, [prompts], TWO) for folder in folders.values()])
    for folder, answers in zip(folders.values(), made, strict=True):
        assert not isinstance(answers, str), answers
        check(folder, prompts, answers[0])
