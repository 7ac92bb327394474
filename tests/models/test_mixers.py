"""What every mixer must do, whichever layers it sits in: one class of tests over all of them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hybridize.models import HybridForCausalLM, cache_bytes
from hybridize.models.mixers import build_mixer, find_mixer
from hybridize.surgery import convert
from tests.close import assert_close
from tests.models.cases import CASES
from tests.tiny import as_student, tiny_teacher, tokens

EXACT = 1e-5
"""Relative, float32: the same sums in another order; norms of small outputs amplify it."""
LAYERS = {"some": (1, 2), "all": (0, 1, 2, 3)}


@pytest.fixture(
    scope="module",
    params=[(case, layers) for case in CASES if case != "attention" for layers in LAYERS],
)
def student(request: pytest.FixtureRequest) -> HybridForCausalLM:
    case, layers = request.param
    kind, options = CASES[case]
    teacher = as_student(tiny_teacher("qwen2"))
    layout = teacher.layout.convert(LAYERS[layers], to=kind)
    init = "random" if ":" in kind else "from_attention"
    made = convert(teacher, layout, options=options, init=init)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # away from the special values of the start, such as D = 0
        for name, parameter in made.named_parameters():
            if ".mixer." in name and parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


@torch.no_grad()
def logits_of(model: HybridForCausalLM, ids: Tensor, **options: Any) -> Tensor:
    return model(ids, **options).logits


def test_documents_do_not_leak(student: HybridForCausalLM) -> None:
    ids = tokens(2, 90)
    segments = torch.tensor([[1] * 3 + [2] * 67 + [5] * 12 + [0] * 8, [2] * 89 + [1]])
    packed = logits_of(student, ids, segments=segments)
    assert packed.isfinite().all()
    for row, start, stop in ((0, 0, 3), (0, 3, 70), (0, 70, 82), (1, 0, 89), (1, 89, 90)):
        alone = logits_of(student, ids[row : row + 1, start:stop])
        assert_close(packed[row : row + 1, start:stop], alone, EXACT)


def test_left_padding_changes_nothing(student: HybridForCausalLM) -> None:
    ids = tokens(2, 20)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, :6] = 0
    padded = logits_of(student, ids, attention_mask=mask)
    assert_close(padded[:1, 6:], logits_of(student, ids[:1, 6:]), EXACT)
    assert_close(padded[1:], logits_of(student, ids[1:]), EXACT)


@torch.no_grad()
def test_pieces_and_single_tokens_equal_one_pass(student: HybridForCausalLM) -> None:
    ids = tokens(2, 90)
    cache = student.make_cache()
    pieces = [
        student(ids[:, start:stop], past_key_values=cache).logits
        for start, stop in [(0, 40), (40, 42), (42, 80), *((t, t + 1) for t in range(80, 90))]
    ]
    assert cache.get_seq_length() == 90
    assert_close(torch.cat(pieces, dim=1), logits_of(student, ids), EXACT)


def test_generation_of_a_padded_batch_equals_rows_alone(student: HybridForCausalLM) -> None:
    ids = tokens(2, 20)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, :6] = 0
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    both = student.generate(ids, attention_mask=mask, **options)
    short = student.generate(ids[:1, 6:], **options)
    assert torch.equal(both[0, 20:], short[0, 14:])
    assert torch.equal(both[1:], student.generate(ids[1:], **options))
    assert torch.equal(
        both, student.generate(ids, attention_mask=mask, prefill_chunk_size=7, **options)
    )


def test_beams_with_a_cache_equal_beams_without(student: HybridForCausalLM) -> None:
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": 3}
    cached = student.generate(tokens(2, 9), **options)
    assert torch.equal(cached, student.generate(tokens(2, 9), use_cache=False, **options))


def test_a_second_turn_continues_the_cache(student: HybridForCausalLM) -> None:
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    cache = student.make_cache()
    ids = tokens(1, 9)
    first = student.generate(ids, attention_mask=ids > 0, past_key_values=cache, **options)
    turn = torch.cat([first, tokens(1, 4, seed=8)], dim=1)
    options["attention_mask"] = torch.ones_like(turn)
    second = student.generate(turn, past_key_values=cache, **options)
    assert torch.equal(second, student.generate(turn, **options))


def test_a_padded_second_turn_continues_the_state(student: HybridForCausalLM) -> None:
    """A shorter new turn is padded in front, between tokens that came before and after."""
    ids, more = tokens(2, 9), tokens(2, 4, seed=8)
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[0, 9:11] = 0
    positions = mask.cumsum(1) - 1
    cache = student.make_cache()
    logits_of(student, ids, past_key_values=cache)
    found = logits_of(
        student, more, past_key_values=cache, attention_mask=mask, position_ids=positions[:, 9:]
    )
    alone = torch.cat([ids[:1], more[:1, 2:]], dim=1)
    assert_close(found[:1, 2:], logits_of(student, alone)[:, 9:], EXACT)
    whole = torch.cat([ids, more], dim=1)
    assert_close(found[1:], logits_of(student, whole[1:])[:, 9:], EXACT)


def test_every_parameter_gets_a_finite_gradient(student: HybridForCausalLM) -> None:
    segments = torch.tensor([[1] * 12 + [2] * 8 + [0] * 4, [0] * 24])
    student.zero_grad()
    student(tokens(), segments=segments).logits.logsumexp(-1).mean().backward()
    unread = [f"model.layers.{n}.input_layernorm.weight" for n in student.layout.layers("identity")]
    for name, parameter in student.named_parameters():
        assert name in unread or parameter.grad.isfinite().all(), name


def test_the_cache_counts_its_bytes(student: HybridForCausalLM) -> None:
    sizes = []
    for num_tokens in (16, 24):  # more than a window and its sinks
        cache = student.make_cache()
        logits_of(student, tokens(2, num_tokens), past_key_values=cache)
        sizes.append(cache_bytes(cache))
    num_attention = len(student.layout.layers("attention"))
    assert sizes[1] - sizes[0] == num_attention * 2 * 8 * (2 * 16) * 4
    cache.reset()
    assert cache.get_seq_length() == 0
    logits_of(student, tokens(2, 16), past_key_values=cache)
    assert cache_bytes(cache) == sizes[0]


def test_state_bytes_are_the_formula() -> None:
    teacher = as_student(tiny_teacher())
    student = convert(teacher, teacher.layout.convert(range(4), to="mamba2"))
    cache = student.make_cache()
    logits_of(student, tokens(3, 8), past_key_values=cache)
    state, conv = 4 * 8 * 8, (3 * 32) * 3
    assert cache_bytes(cache) == 4 * 3 * (state + conv) * 4


def test_a_cache_with_states_cannot_be_cropped() -> None:
    teacher = as_student(tiny_teacher())
    student = convert(teacher, teacher.layout.convert([1], to="mamba2"))
    cache = student.make_cache()
    logits_of(student, tokens(2, 8), past_key_values=cache)
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-2)
    cache = teacher.make_cache()
    logits_of(teacher, tokens(2, 8), past_key_values=cache)
    cache.crop(-2)
    found = logits_of(teacher, tokens(2, 8)[:, 6:], past_key_values=cache)
    assert_close(found, logits_of(teacher, tokens(2, 8))[:, 6:], EXACT)


def test_unknown_mixers_and_options_are_refused() -> None:
    shape = convert(
        as_student(tiny_teacher()), as_student(tiny_teacher()).layout.convert([0], to="mamba2")
    )
    shape = shape.model.layers[0].mixer.shape
    with pytest.raises(ValueError, match="Did you mean mamba2"):
        find_mixer("mamba3")
    with pytest.raises(ValueError, match="cannot be imported"):
        find_mixer("tests.models.plugin:Missing")
    with pytest.raises(ValueError, match="not a subclass"):
        find_mixer("pathlib:Path")
    with pytest.raises(
        ValueError, match=r"'width' is not an option .*expand, state_size, conv_width"
    ):
        build_mixer("mamba2", shape, 0, {"width": 3})
    with pytest.raises(ValueError, match="expand 3"):
        build_mixer("mamba2", shape, 0, {"expand": 3})
    with pytest.raises(ValueError, match="does not divide the head width 8"):
        build_mixer("mamba1", shape, 0, {"state_size": 3})
    with pytest.raises(ValueError, match="dt_bias"):
        build_mixer("mamba1", shape, 0, {"state_size": 4, "dt_bias": "thrice"})
