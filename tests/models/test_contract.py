"""What every mixer must do, whichever way the tokens come: one class of tests over all of them.

Legend: B batch, T tokens, D model width.

The mixers are those of the table, so a mixer added there is tested without a line here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridize.models import HybridForCausalLM, load_model, save_model
from tests.models.cases import CASES, make_model, mix, mix_slowly, pack, pad_left

SLOWLY = 1e-4
"""Largest difference, relative to the largest value, float32: the definition sums token by token,
so decays and products are rounded in another order."""
APART = 1e-5
"""The same, between two runs of one form: only the sizes of matrix products and chunks differ."""
EXACT = 1e-10
"""The same in float64: what is left of a difference that was rounding, and of no other kind."""


@dataclass(frozen=True)
class Draw:
    """Sizes of a mixer, and documents with the places where they are cut into pieces."""

    heads: int
    kv_heads: int
    head_dim: int
    lengths: tuple[int, ...]
    cuts: tuple[int, ...]
    padding: int
    seed: int

    def model(self, case: str, dtype: torch.dtype = torch.float32) -> HybridForCausalLM:
        sizes = {"heads": self.heads, "kv_heads": self.kv_heads, "head_dim": self.head_dim}
        return make_model(case, **sizes, width=16, seed=self.seed, dtype=dtype)

    def documents(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        return [
            torch.randn(length, 16, generator=generator, dtype=torch.float64).to(dtype)
            for length in self.lengths
        ]

    def pieces(self, length: int) -> list[slice]:
        inner = sorted({cut for cut in self.cuts if 0 < cut < length})
        edges = [0, *inner, length]
        return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


EXAMPLE = Draw(4, 2, 8, (3, 70, 1, 26), (1, 19, 20, 64), 5, 1)
"""Documents shorter and longer than a window and than a chunk, cut at awkward places."""
DRAWS = st.builds(
    Draw,
    heads=st.shared(st.sampled_from([1, 2, 3, 4, 6]), key="heads"),
    kv_heads=st.shared(st.sampled_from([1, 2, 3, 4, 6]), key="heads").flatmap(
        lambda heads: st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0])
    ),
    head_dim=st.sampled_from([4, 8]),
    lengths=st.lists(st.integers(1, 80), min_size=1, max_size=4).map(tuple),
    cuts=st.lists(st.integers(1, 79), max_size=3).map(tuple),
    padding=st.integers(0, 3),
    seed=st.integers(0, 5),
)
LIGHT = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
DEEP = settings(LIGHT, max_examples=60)


def in_one_pass(model: HybridForCausalLM, draw: Draw, documents: list[Tensor]) -> list[Tensor]:
    return [mix(model, one[None])[0] for one in documents]


def in_pieces(model: HybridForCausalLM, draw: Draw, documents: list[Tensor]) -> list[Tensor]:
    found = []
    for one in documents:
        cache = model.make_cache()
        pieces = [mix(model, one[None, cut], cache=cache) for cut in draw.pieces(len(one))]
        found.append(torch.cat(pieces, dim=1)[0])
    return found


def token_by_token(model: HybridForCausalLM, draw: Draw, documents: list[Tensor]) -> list[Tensor]:
    """The rows of a left-padded batch, prefilled to half of the shortest, then step by step."""
    hidden_BTD, mask_BT = pad_left(documents)
    cache, num_tokens = model.make_cache(), hidden_BTD.shape[1]
    prefill = num_tokens - min(draw.lengths) // 2
    edges = [0, prefill, *range(prefill + 1, num_tokens + 1)]
    pieces = [
        mix(model, hidden_BTD[:, a:b], cache=cache, attention_mask=mask_BT[:, :b])
        for a, b in zip(edges, edges[1:], strict=False)
    ]
    rows = zip(torch.cat(pieces, dim=1), draw.lengths, strict=True)
    return [row[num_tokens - length :] for row, length in rows]


def packed(model: HybridForCausalLM, draw: Draw, documents: list[Tensor]) -> list[Tensor]:
    hidden_1TD, segments_1T = pack(documents, draw.padding)
    found = mix(model, hidden_1TD, segments_BT=segments_1T)[0]
    return list(found[: sum(draw.lengths)].split(list(draw.lengths)))


def left_padded(model: HybridForCausalLM, draw: Draw, documents: list[Tensor]) -> list[Tensor]:
    hidden_BTD, mask_BT = pad_left(documents)
    found = mix(model, hidden_BTD, attention_mask=mask_BT)
    return [row[mask != 0] for row, mask in zip(found, mask_BT, strict=True)]


WAYS: dict[str, Callable[..., list[Tensor]]] = {
    "one-pass": in_one_pass,
    "chunked-prefill": in_pieces,
    "step-decode": token_by_token,
    "packed": packed,
    "left-padded": left_padded,
}
way = pytest.mark.parametrize("way", WAYS)


def assert_near(found: Tensor, wanted: Tensor, allowed: float) -> None:
    """Compare the largest difference with the largest value wanted, or with 1 if that is more."""
    assert found.shape == wanted.shape and found.isfinite().all()
    scale = wanted.detach().abs().max().clamp(min=1).item()
    error = (found.double() - wanted.double()).abs().max().item() / scale
    assert error <= allowed, f"largest difference {error:.3g}, allowed {allowed:.3g}"


def assert_all_near(found: list[Tensor], wanted: list[Tensor], allowed: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert_near(one, other, allowed)


def gradients(model: HybridForCausalLM, draw: Draw, run: Callable[..., list[Tensor]]) -> Tensor:
    """Return all gradients of a random projection of the outputs, inputs first, in one row."""
    documents = [one.requires_grad_() for one in draw.documents(model.dtype)]
    generator = torch.Generator().manual_seed(3)
    total = torch.zeros((), dtype=model.dtype)
    for output in run(model, draw, documents):
        probe = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        total = total + (output * probe.to(output.dtype)).sum()
    inputs = [*documents, *model.model.layers[0].parameters()]
    if not total.requires_grad:
        return torch.zeros(1)
    found = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
    return torch.cat([one.flatten() for one in found])


def by_definition(model: HybridForCausalLM, draw: Draw, documents: list[Tensor]) -> list[Tensor]:
    return [mix_slowly(model, one[None])[0] for one in documents]


@pytest.mark.parametrize("case", CASES)
class TestContract:
    @way
    @torch.no_grad()
    def test_every_way_gives_what_the_definition_gives(self, case: str, way: str) -> None:
        model, documents = EXAMPLE.model(case), EXAMPLE.documents()
        wanted = by_definition(model, EXAMPLE, documents)
        assert_all_near(WAYS[way](model, EXAMPLE, documents), wanted, SLOWLY)

    @way
    @torch.no_grad()
    def test_every_way_gives_what_documents_alone_give(self, case: str, way: str) -> None:
        model, documents = EXAMPLE.model(case), EXAMPLE.documents()
        found = WAYS[way](model, EXAMPLE, documents)
        assert_all_near(found, in_one_pass(model, EXAMPLE, documents), APART)

    @way
    @torch.no_grad()
    def test_what_differs_in_float32_is_rounding(self, case: str, way: str) -> None:
        model, documents = EXAMPLE.model(case, torch.float64), EXAMPLE.documents(torch.float64)
        wanted = by_definition(model, EXAMPLE, documents)
        assert_all_near(WAYS[way](model, EXAMPLE, documents), wanted, EXACT)
