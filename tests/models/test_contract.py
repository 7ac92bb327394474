"""What every mixer must do, whichever way the tokens come: one class of tests over all of them.

Legend: B batch, T tokens, D model width.

The mixers are those of the table, so a mixer added there is tested without a line here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hybridize.models import HybridForCausalLM, load_model, save_model
from tests.close import assert_close
from tests.models.cases import CASES, make_model, mix, mix_slowly, pack, pad_left

SLOWLY = 1e-4
"""Largest difference, relative to the largest value, float32: the definition sums token by token,
so decays and products are rounded in another order."""
APART = 1e-5
"""The same, between two runs of one form: only the sizes of matrix products and chunks differ."""
EXACT = 1e-10
"""The same in float64: what is left of a difference that was rounding, and of no other kind."""
ROUNDED = 3e-2
"""Root mean square, relative: bfloat16 has 8 bits, and a mixer a handful of roundings in a row."""


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
        return make_model(case, **sizes, width=12, seed=self.seed, dtype=dtype)

    def documents(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        return [
            torch.randn(length, 12, generator=generator, dtype=torch.float64).to(dtype)
            for length in self.lengths
        ]

    def pieces(self, length: int) -> list[slice]:
        inner = sorted({cut for cut in self.cuts if 0 < cut < length})
        edges = [0, *inner, length]
        return [slice(a, b) for a, b in pairwise(edges)]


EXAMPLE = Draw(4, 2, 8, (3, 66, 1, 12), (1, 8, 9, 64), 5, 1)
"""Documents shorter and longer than a window and than a chunk, cut at awkward places."""
DRAWS = st.builds(
    Draw,
    heads=st.shared(st.sampled_from([1, 2, 3, 4, 6]), key="heads"),
    kv_heads=st.shared(st.sampled_from([1, 2, 3, 4, 6]), key="heads").flatmap(
        lambda heads: st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0])
    ),
    head_dim=st.sampled_from([4, 8]),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple),
    cuts=st.lists(st.integers(1, 39), max_size=3).map(tuple),
    padding=st.integers(0, 3),
    seed=st.integers(0, 5),
)
FEW = settings(max_examples=3, deadline=None, derandomize=True, database=None)
MANY = settings(FEW, max_examples=60, derandomize=False)


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
        for a, b in pairwise(edges)
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


def by_definition(model: HybridForCausalLM, draw: Draw, documents: list[Tensor]) -> list[Tensor]:
    return [mix_slowly(model, one[None])[0] for one in documents]


def gradients(model: HybridForCausalLM, draw: Draw, run: Callable[..., list[Tensor]]) -> Tensor:
    """Return all gradients of a random projection of the outputs, inputs first, in one row."""
    documents = [one.requires_grad_() for one in draw.documents(model.dtype)]
    generator = torch.Generator().manual_seed(3)
    total = sum(one.sum() for one in documents) * 0
    for output in run(model, draw, documents):
        probe = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        total = total + (output * probe.to(output.dtype)).sum()
    inputs = [*documents, *model.model.layers[0].parameters()]
    found = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
    return torch.cat([one.flatten() for one in found])


@cache
def example(case: str, dtype: torch.dtype) -> tuple[HybridForCausalLM, list[Tensor]]:
    """Return the model of the example, and what the definition makes of its documents."""
    model = EXAMPLE.model(case, dtype)
    with torch.no_grad():
        return model, by_definition(model, EXAMPLE, EXAMPLE.documents(dtype))


@cache
def example_gradients(case: str) -> Tensor:
    return gradients(EXAMPLE.model(case), EXAMPLE, by_definition)


@pytest.fixture
def poison() -> Iterator[None]:
    """Fill memory that is asked for without a value with NaN, as `torch.empty` gives it."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


class Mixing(nn.Module):
    """The mixer of a model on packed rows, as a module of its own."""

    def __init__(self, model: HybridForCausalLM, segments_BT: Tensor) -> None:
        super().__init__()
        self.model, self.segments_BT = model, segments_BT

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return mix(self.model, hidden_BTD, segments_BT=self.segments_BT)


@pytest.mark.parametrize("case", CASES)
class TestContract:
    @way
    @torch.no_grad()
    def test_every_way_gives_what_the_definition_gives(
        self, case: str, way: str, poison: None
    ) -> None:
        model, wanted = example(case, torch.float32)
        found = WAYS[way](model, EXAMPLE, EXAMPLE.documents())
        assert_all_near(found, wanted, SLOWLY)
        assert_all_near(found, in_one_pass(model, EXAMPLE, EXAMPLE.documents()), APART)

    @way
    @torch.no_grad()
    def test_what_differs_in_float32_is_rounding(self, case: str, way: str) -> None:
        model, wanted = example(case, torch.float64)
        found = WAYS[way](model, EXAMPLE, EXAMPLE.documents(torch.float64))
        assert_all_near(found, wanted, EXACT)

    @way
    def test_gradients_are_those_of_the_definition(self, case: str, way: str, poison: None) -> None:
        found = gradients(example(case, torch.float32)[0], EXAMPLE, WAYS[way])
        assert_near(found, example_gradients(case), SLOWLY)

    @way
    @torch.no_grad()
    def test_drawn_sizes_documents_and_cuts(self, case: str, way: str) -> None:
        check_drawn(case, way, FEW)

    @pytest.mark.slow
    @way
    @torch.no_grad()
    def test_many_drawn_sizes_documents_and_cuts(self, case: str, way: str) -> None:
        check_drawn(case, way, MANY)

    def test_gradients_are_finite_differences(self, case: str) -> None:
        model = make_model(case, heads=2, kv_heads=1, head_dim=4, width=6, dtype=torch.float64)
        generator = torch.Generator().manual_seed(2)
        hidden_1TD = torch.randn(1, 6, 6, generator=generator, dtype=torch.float64)
        segments_1T = torch.tensor([[1, 1, 2, 2, 2, 0]])
        mixing = Mixing(model, segments_1T)
        parameters = {
            name: parameter
            for name, parameter in mixing.named_parameters()
            if ".mixer." in name or ".self_attn." in name
        }

        def run(hidden_BTD: Tensor, *values: Tensor) -> Tensor:
            given = dict(zip(parameters, values, strict=True))
            return torch.func.functional_call(mixing, given, (hidden_BTD,))[:, :5]

        inputs = (hidden_1TD.requires_grad_(), *parameters.values())
        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)

    @pytest.mark.parametrize("how", ["attention_mask", "segments"])
    def test_whatever_stands_at_padding_reaches_nobody(
        self, case: str, how: str, poison: None
    ) -> None:
        """Embeddings of padding may be anything, also NaN: no other output, no gradient sees it."""
        model = example(case, torch.float32)[0]
        documents = EXAMPLE.documents()[:2]
        hidden_BTD, real_BT = pad_left(documents) if how == "attention_mask" else pack(documents, 6)
        results = []
        for fill in (0.0, 1e4, torch.nan):
            filled_BTD = hidden_BTD.masked_fill((real_BT == 0)[..., None], fill).requires_grad_()
            model.zero_grad()
            logits_BTV = model(inputs_embeds=filled_BTD, **{how: real_BT}).logits
            logits_BTV[real_BT != 0].square().sum().backward()
            grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            outer = (logits_BTV[real_BT != 0].flatten(), filled_BTD.grad.flatten())
            results.append(torch.cat([*outer, *grads]))
        assert results[0].isfinite().all()
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])

    @torch.no_grad()
    def test_saved_and_loaded_is_the_same_in_every_byte(self, case: str, tmp_path: Path) -> None:
        model = example(case, torch.float32)[0]
        ids = torch.arange(3, 15)[None]
        back = load_model(save_model(model, None, tmp_path / "one"))
        assert torch.equal(back(ids).logits, model(ids).logits)
        save_model(back, None, tmp_path / "two")
        for file in ("config.json", "model.safetensors"):
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()

    @torch.no_grad()
    def test_bfloat16_stays_near_float32(self, case: str, tmp_path: Path) -> None:
        model, wanted = example(case, torch.float32)
        narrow = load_model(save_model(model, None, tmp_path / "model"), dtype=torch.bfloat16)
        mixer = getattr(narrow.model.layers[0], "mixer", None)
        wide = {name for name, p in narrow.named_parameters() if p.dtype == torch.float32}
        assert wide == {f"model.layers.0.mixer.{name}" for name in getattr(mixer, "FLOAT32", ())}
        for way in ("packed", "step-decode"):
            found = torch.cat(WAYS[way](narrow, EXAMPLE, EXAMPLE.documents(torch.bfloat16)))
            assert found.dtype == torch.bfloat16
            assert_close(found, torch.cat(wanted), ROUNDED)

    @torch.no_grad()
    def test_two_runs_and_two_draws_are_equal(self, case: str) -> None:
        one, other = EXAMPLE.model(case), EXAMPLE.model(case)
        for way in ("packed", "step-decode"):
            runs = [
                torch.cat(WAYS[way](m, EXAMPLE, EXAMPLE.documents())) for m in (one, one, other)
            ]
            assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
        mixer = getattr(one.model.layers[0], "mixer", None)
        if mixer is not None:
            draws = []
            for seed in (1, 1, 2):
                mixer.reset(torch.Generator().manual_seed(seed))
                draws.append([value.clone() for value in mixer.state_dict().values()])
            pairs = [list(map(torch.equal, draws[0], later)) for later in draws[1:]]
            assert all(pairs[0]) and (not draws[0] or not all(pairs[1]))


def check_drawn(case: str, way: str, profile: settings) -> None:
    """Compare one way with the definition in float64, where a difference is a mistake."""

    @profile
    @given(draw=DRAWS)
    def check(draw: Draw) -> None:
        model, documents = draw.model(case, torch.float64), draw.documents(torch.float64)
        found = WAYS[way](model, draw, documents)
        assert_all_near(found, by_definition(model, draw, documents), EXACT)

    check()
