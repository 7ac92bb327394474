"""Norms and MLPs of training, in one pass: the numbers of the teacher's own modules to rounding."""

import pytest
import torch

from hybridize.models import HybridForCausalLM
from tests.close import assert_close
from tests.tiny import FAMILY_NAMES, as_student, tiny_teacher, tokens

ONE_DOCUMENT = torch.ones_like(tokens())


def run(student: HybridForCausalLM, segments: torch.Tensor | None) -> list[torch.Tensor]:
    """Return the final states and the gradients of all parameters below the head."""
    hidden = student.hidden(tokens(), segments)
    below = [p for name, p in student.named_parameters() if "lm_head" not in name]
    return [hidden, *torch.autograd.grad(hidden.sin().sum(), below)]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family_trains_on_its_own_numbers(family: str) -> None:
    student = as_student(tiny_teacher(family))
    for found, wanted in zip(run(student, ONE_DOCUMENT), run(student, None), strict=True):
        assert_close(found, wanted, 1e-5)


def test_text_without_segments_runs_the_modules_themselves() -> None:
    student = as_student(tiny_teacher())
    embedded = student.model.embed_tokens(tokens())
    assert student.make_context(embedded, segments_BT=ONE_DOCUMENT).fused
    assert not student.make_context(embedded).fused
    assert not student.make_context(embedded, ONE_DOCUMENT).fused


def test_under_autocast_the_gate_stays_in_its_precision() -> None:
    student = as_student(tiny_teacher())
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = (student.hidden(tokens(), given) for given in (ONE_DOCUMENT, None))
    assert found.dtype == wanted.dtype
    assert_close(found.float(), wanted.float(), 0.02)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_packed_documents_train_on_the_numbers_of_each_alone(family: str) -> None:
    student = as_student(tiny_teacher(family))
    ids, cut = tokens(), tokens().shape[1] // 3
    segments = torch.ones_like(ids)
    segments[:, cut:] = 2
    packed = student.hidden(ids, segments)
    alone = [student.hidden(part) for part in (ids[:, :cut], ids[:, cut:])]
    below = [p for name, p in student.named_parameters() if "lm_head" not in name]
    results = [
        [hidden, *torch.autograd.grad(hidden.sin().sum(), below)]
        for hidden in (packed, torch.cat(alone, dim=1))
    ]
    for found, wanted in zip(*results, strict=True):
        assert_close(found, wanted, 1e-5)


def test_attention_with_dropout_drops() -> None:
    student = as_student(tiny_teacher()).train()
    segments = torch.ones_like(tokens())
    segments[:, 3:] = 2
    whole = student.hidden(tokens(), segments)
    for layer in student.model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert not torch.equal(student.hidden(tokens(), segments), whole)
    assert torch.equal(student.eval().hidden(tokens(), segments), whole)
