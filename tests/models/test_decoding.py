"""Decoding with a cache gives what decoding without one gives, whatever the layout and the batch.

Legend: B batch, T tokens.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from hybridize.core.layout import Layout
from hybridize.core.shape import ModelShape
from hybridize.models import HybridForCausalLM, cache_bytes
from hybridize.models.mixers import MIXERS
from hybridize.surgery import convert
from tests.close import assert_close
from tests.models.cases import SMALL
from tests.tiny import as_student, tiny_teacher, tokens

EXACT = 1e-5
"""Relative, float32: the same sums in another order."""
PAD = 0
LAYOUTS = {
    "all attention": "AAAA",
    "all windows of the teacher": "AAAA",
    "all mamba2": "MMMM",
    "all mamba1": "mmmm",
    "all gated_delta": "GGGG",
    "all sliding": "WWWW",
    "one of each": "AMWG",
    "windows and one of each": "mAGW",
    "first attention last": "MWmA",
}
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}


TURNS = [name for name in LAYOUTS if "windows" not in name]
"""Where padding between two turns is no token. In a window of the teacher's own it is one, as in
transformers' class of the teacher; `sliding` counts tokens only."""


def make_student(name: str) -> HybridForCausalLM:
    """Convert a tiny teacher layer by layer, as each kind has options of its own."""
    changes = {"sliding_window": 6} if "windows" in name else {}
    teacher = as_student(tiny_teacher("mistral", **changes))
    student, layout = teacher, Layout.parse(LAYOUTS[name])
    for kind in set(layout.mixers) - {"attention"}:
        goal = student.layout.convert(layout.layers(kind), to=kind)
        student = convert(student, goal, options=SMALL.get(kind, {}), source=teacher)
    assert student.layout == layout
    return student


@pytest.fixture(scope="module", params=LAYOUTS)
def student(request: pytest.FixtureRequest) -> HybridForCausalLM:
    return make_student(request.param)


@torch.no_grad()
def generate(model: HybridForCausalLM, ids: Tensor, **options: Any) -> Tensor:
    return model.generate(ids, **({"attention_mask": torch.ones_like(ids)} | GREEDY | options))


def pad(rows: list[Tensor], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Put rows of tokens (T,) under each other, padded in front; return them and the mask."""
    length = length or max(len(row) for row in rows)
    ids = torch.stack([torch.cat([row.new_full((length - len(row),), PAD), row]) for row in rows])
    return ids, (ids != PAD).long()


def rows_of(*lengths: int, seed: int = 1) -> list[Tensor]:
    return [tokens(1, n, seed=seed + row)[0] for row, n in enumerate(lengths)]


def test_a_padded_batch_equals_rows_alone(student: HybridForCausalLM) -> None:
    rows = rows_of(20, 1, 13)
    ids, mask = pad(rows)
    both = generate(student, ids, attention_mask=mask)[:, 20:]
    for row, found in zip(rows, both, strict=True):
        assert torch.equal(found, generate(student, row[None])[0, len(row) :])


def test_without_a_cache_the_same_is_generated(student: HybridForCausalLM) -> None:
    ids, mask = pad(rows_of(20, 4))
    cached = generate(student, ids, attention_mask=mask)
    assert torch.equal(cached, generate(student, ids, attention_mask=mask, use_cache=False))


@pytest.mark.parametrize("piece", [1, 7])
def test_a_prompt_in_pieces_equals_one_pass(student: HybridForCausalLM, piece: int) -> None:
    ids, mask = pad(rows_of(20, 9))
    whole = generate(student, ids, attention_mask=mask)
    found = generate(student, ids, attention_mask=mask, prefill_chunk_size=piece)
    assert torch.equal(found, whole)


def test_beams_take_their_states_along(student: HybridForCausalLM) -> None:
    ids, mask = pad(rows_of(12, 5))
    options = {"attention_mask": mask, "num_beams": 4, "num_return_sequences": 2}
    options |= {"output_scores": True, "return_dict_in_generate": True}
    with torch.no_grad():
        cached = student.generate(ids, **GREEDY | options)
        plain = student.generate(ids, use_cache=False, **GREEDY | options)
    assert torch.equal(cached.sequences, plain.sequences)
    assert_close(cached.sequences_scores, plain.sequences_scores, EXACT)


def test_samples_are_those_without_a_cache(student: HybridForCausalLM) -> None:
    ids, mask = pad(rows_of(12, 5))
    options = {"attention_mask": mask, "do_sample": True, "num_return_sequences": 3, "top_k": 8}
    found = []
    for use_cache in (True, False):
        torch.manual_seed(4)
        found.append(generate(student, ids, use_cache=use_cache, **options))
    assert torch.equal(found[0], found[1])
    assert len({tuple(row.tolist()) for row in found[0]}) > 2


@pytest.mark.parametrize("student", TURNS, indirect=True)
def test_a_second_turn_of_other_lengths_continues_the_cache(student: HybridForCausalLM) -> None:
    """The first turns are padded in front, the second ones between the turns."""
    first, second = rows_of(9, 4), rows_of(3, 6, seed=7)
    cache = student.make_cache()
    ids, mask = pad(first)
    before = generate(student, ids, attention_mask=mask, past_key_values=cache)
    more, more_mask = pad(second)
    ids = torch.cat([before, more], dim=1)
    mask = torch.cat([mask, torch.ones_like(before[:, 9:]), more_mask], dim=1)
    found = generate(student, ids, attention_mask=mask, past_key_values=cache)
    for row in range(2):
        alone = torch.cat([first[row], before[row, 9:], second[row]])[None]
        assert torch.equal(
            found[row, ids.shape[1] :], generate(student, alone)[0, alone.shape[1] :]
        )


@pytest.mark.parametrize("student", TURNS, indirect=True)
@pytest.mark.parametrize("ends_with", ["end", "padding"])
def test_a_row_that_ends_early_leaves_no_padding_in_its_state(
    student: HybridForCausalLM, ends_with: str
) -> None:
    """`generate` feeds padding to rows that have ended; a later turn must not see it."""
    first = rows_of(9, 4)
    ids, mask = pad(first)
    free = generate(student, ids, attention_mask=mask)
    said = next(n for n in range(1, 8) if free[1, 9 + n] not in free[0, 9:])
    end = int(free[1, 9 + said])  # what only row 1 says becomes the end
    filler = PAD if ends_with == "padding" else end
    cache = student.make_cache()
    options = {"past_key_values": cache, "eos_token_id": end, "pad_token_id": filler}
    before = generate(student, ids, attention_mask=mask, **options)
    stop = 9 + before[1, 9:].tolist().index(end) + 1
    assert before[1, stop:].eq(filler).all() and torch.equal(before[0], free[0])
    more = torch.stack(rows_of(5, 5, seed=7))
    mask = torch.cat([mask, torch.ones(2, before.shape[1] + 5 - 9, dtype=torch.long)], dim=1)
    mask[1, stop : before.shape[1]] = 0
    ids = torch.cat([before, more], dim=1)
    found = generate(student, ids, attention_mask=mask, past_key_values=cache)
    for row in range(2):
        alone = ids[row, mask[row] != 0][None]
        assert torch.equal(
            found[row, ids.shape[1] :], generate(student, alone)[0, alone.shape[1] :]
        )


@pytest.mark.parametrize("kind", ["attention", *MIXERS])
@pytest.mark.parametrize("num_tokens", [1, 8, 40])
@torch.no_grad()
def test_bytes_are_those_of_the_formula(kind: str, num_tokens: int) -> None:
    teacher = as_student(tiny_teacher())
    options = SMALL.get(kind, {})
    layout = teacher.layout.convert(range(1, 4), to=kind)
    student = convert(teacher, layout, options=options)
    shape = ModelShape.from_config(student.config.teacher.to_dict())
    cache = student.make_cache()
    student(tokens(3, num_tokens), past_key_values=cache)
    wanted = shape.cache_bytes(layout, num_tokens, bytes_per_value=4, options={kind: options})
    assert cache_bytes(cache) == 3 * wanted
    student(tokens(3, 1), past_key_values=cache)
    wanted = shape.cache_bytes(layout, num_tokens + 1, bytes_per_value=4, options={kind: options})
    assert cache_bytes(cache) == 3 * wanted
    cache.batch_select_indices(torch.tensor([2, 0]))
    assert cache_bytes(cache) == 2 * wanted
