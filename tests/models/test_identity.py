"""An unconverted student is its teacher: same tensors, same numbers, bit for bit."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hybridize.models import HybridForCausalLM, without
from tests.close import assert_close
from tests.tiny import FAMILY_NAMES, as_student, tiny_teacher, tokens

BY_LAYER = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in FAMILY_NAMES),
    ("mistral", {"sliding_window": 8}),
    ("qwen2", BY_LAYER),
    ("qwen3", BY_LAYER),
    ("smollm3", {"sliding_window": 8, "use_sliding_window": True}),
    ("phi3", {"sliding_window": 8}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("qwen3", {"attention_bias": True, "head_dim": 12}),
    ("granite", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("olmo2", {"attention_bias": True, "num_key_value_heads": None}),
    ("mistral", {"head_dim": 12}),
]
IDS = [f"{name}-{'-'.join(changes) or 'plain'}" for name, changes in CASES]


@pytest.fixture(params=CASES, ids=IDS)
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, HybridForCausalLM]:
    name, changes = request.param
    teacher = tiny_teacher(name, **changes)
    return teacher, as_student(teacher)


def test_logits_and_states_are_the_teachers(pair: tuple[Any, Any]) -> None:
    teacher, student = pair
    wanted = teacher(tokens(), output_hidden_states=True)
    found = student(tokens(), output_hidden_states=True)
    assert torch.equal(found.logits, wanted.logits)
    assert len(found.hidden_states) == len(wanted.hidden_states)
    for ours, theirs in zip(found.hidden_states, wanted.hidden_states, strict=True):
        assert torch.equal(ours, theirs)


def test_left_padded_generation_is_the_teachers(pair: tuple[Any, Any]) -> None:
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[0, :5] = 0
    options = {"max_new_tokens": 10, "return_dict_in_generate": True, "output_logits": True}
    results = [
        model.generate(tokens(), attention_mask=mask, do_sample=False, **options) for model in pair
    ]
    assert torch.equal(results[0].sequences, results[1].sequences)
    for ours, theirs in zip(results[1].logits, results[0].logits, strict=True):
        assert torch.equal(ours, theirs)


def test_packed_documents_equal_documents_alone(pair: tuple[Any, Any]) -> None:
    teacher, student = pair
    ids = tokens()
    segments = torch.tensor([[1] * 9 + [2] * 11 + [0] * 4, [3] * 2 + [1] * 22])
    logits = student(ids, segments=segments).logits
    assert logits.isfinite().all()
    for row, start, stop in ((0, 0, 9), (0, 9, 20), (1, 0, 2), (1, 2, 24)):
        alone = teacher(ids[row : row + 1, start:stop]).logits
        assert_close(logits[row : row + 1, start:stop], alone, 1e-5)


def test_masks_are_made_only_where_they_are_needed() -> None:
    student = as_student(tiny_teacher())
    embedded = student.model.embed_tokens(tokens())
    same = student.make_context(embedded, segments_BT=torch.full((2, 24), 7))
    assert same.masks == {None: None} and same.segments_BT is None
    windowed = as_student(tiny_teacher("mistral", sliding_window=8))
    packed = torch.tensor([[1] * 12 + [2] * 12] * 2)
    mask = windowed.make_context(embedded, segments_BT=packed).masks[8]
    assert mask is not None and mask.shape == (2, 1, 24, 24) and mask.dtype == torch.bool


def test_hidden_states_and_head_give_the_logits() -> None:
    student = as_student(tiny_teacher())
    states: list[torch.Tensor] = []
    hidden = student.hidden(tokens(), states=states)
    assert torch.equal(student.lm_head(hidden), student(tokens()).logits)
    assert len(states) == 5 and torch.equal(states[-1], hidden)


def test_only_the_logits_asked_for_are_computed() -> None:
    student = as_student(tiny_teacher())
    whole = student(tokens()).logits
    assert_close(student(tokens(), logits_to_keep=1).logits, whole[:, -1:], 1e-6)
    assert_close(
        student(tokens(), logits_to_keep=torch.tensor([3, 5])).logits, whole[:, [3, 5]], 1e-6
    )


@pytest.mark.parametrize("scope", ["layer", "attention"])
def test_a_layer_left_out_adds_nothing(scope: str) -> None:
    student = as_student(tiny_teacher())
    before = student(tokens()).logits
    layer = student.model.layers[2]
    held = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with without(student, 2, scope):
        left_out = student(tokens()).logits
        text = student.generate(tokens(), max_new_tokens=5, do_sample=False)
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        if scope == "layer":
            layer.mlp.down_proj.weight.zero_()
    assert_close(left_out, student(tokens()).logits, 1e-6)
    assert torch.equal(text, student.generate(tokens(), max_new_tokens=5, do_sample=False))
    layer.load_state_dict(held)
    assert torch.equal(student(tokens()).logits, before)


@pytest.mark.parametrize(("layer", "scope"), [(4, "layer"), (-1, "layer"), (0, "mlp")])
def test_a_layer_that_does_not_exist_is_refused(layer: int, scope: str) -> None:
    student = as_student(tiny_teacher())
    with pytest.raises(ValueError, match="does not exist"), without(student, layer, scope):
        pass
