"""Attention over packed documents: every form against the definition, and against each alone."""

import pytest
import torch

from hybridize.ops import forms, packed_attention
from hybridize.ops.packed_attention.documents import group_documents
from tests.close import assert_close

CPU = torch.device("cpu")
FORMS = [
    name
    for name, form in forms.list_operators()["packed_attention"].items()
    if form.find_obstacle(CPU) is None
]
SEGMENTS = {
    "sorted": torch.tensor([[1] * 40 + [2] + [3] * 33 + [0] * 3, [7] * 70 + [1] * 7]),
    "gaps": torch.tensor([[0, 0, 1, 1, 0, 1, 2], [0] * 7, [5, 5, 5, 4, 4, 0, 0]]),
    "one": torch.ones(1, 130, dtype=torch.long),
    "none": torch.zeros(2, 3, dtype=torch.long),
}


def draw(segments_BT, heads, width, dtype, *, turned=True):
    """Return queries, keys and values, not side by side in memory, and the other arguments."""
    torch.manual_seed(0)
    documents = group_documents(segments_BT)
    sizes = (segments_BT.numel(), sum(heads) + heads[1], width)
    leaves = torch.randn(sizes, dtype=dtype).split([*heads, heads[1]], dim=1)
    rope = tuple(torch.randn(2, documents.longest + 1, width, dtype=dtype)) if turned else None
    return list(leaves), documents, {"scale": 0.3, "rope": rope}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (3, 1)], ids=str)
@pytest.mark.parametrize("segments", list(SEGMENTS))
def test_forms_equal_the_definition(form, heads, segments):
    for dtype, allowed in ((torch.float64, 1e-12), (torch.float32, 3e-6)):
        for width, turned in ((6, True), (20, True), (33, False)):
            results = []
            for name in (form, "reference"):
                leaves, documents, options = draw(
                    SEGMENTS[segments], heads, width, dtype, turned=turned
                )
                leaves = [leaf.requires_grad_() for leaf in leaves]
                out_NHK = packed_attention(*leaves, documents, **options, form=name)
                # Without a document the output depends on nothing.
                loss = out_NHK.sin().sum() + sum(0 * leaf.sum() for leaf in leaves)
                results.append([out_NHK, *torch.autograd.grad(loss, leaves)])
            for found, wanted in zip(*results, strict=True):
                assert_close(found, wanted, allowed)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_agree_with_finite_differences(form):
    leaves, documents, options = draw(SEGMENTS["gaps"], (2, 1), 4, torch.float64)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(
        lambda *inputs: packed_attention(*inputs, documents, **options, form=form), leaves
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_document_is_to_the_bit_what_it_is_alone(form):
    leaves, documents, options = draw(SEGMENTS["sorted"], (4, 2), 20, torch.float32)
    together_NHK = packed_attention(*leaves, documents, **options, form=form)
    for start, length in ((0, 40), (40, 1), (41, 33), (77, 70)):
        tokens = slice(start, start + length)
        alone = group_documents(torch.ones(1, length, dtype=torch.long))
        alone_LHK = packed_attention(*(x[tokens] for x in leaves), alone, **options, form=form)
        if form == "compiled":
            assert torch.equal(alone_LHK, together_NHK[tokens])
        assert_close(alone_LHK, together_NHK[tokens], 1e-6)
    assert together_NHK[74:77].eq(0).all()


@pytest.mark.parametrize("form", FORMS)
def test_far_scores_stay_finite_and_nan_stays_in_its_document(form):
    leaves, documents, _ = draw(SEGMENTS["sorted"], (2, 1), 20, torch.float32)
    leaves = [(1e3 * leaves[0]), leaves[1], leaves[2]]
    out_NHK = packed_attention(*leaves, documents, scale=10.0, form=form)
    assert out_NHK.isfinite().all()
    leaves[0] = leaves[0].index_fill(0, torch.tensor([5]), torch.nan)
    out_NHK = packed_attention(*leaves, documents, scale=10.0, form=form)
    assert out_NHK[5].isnan().all() and out_NHK[6:].isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_stays_bfloat16(form):
    leaves, documents, _ = draw(SEGMENTS["sorted"], (4, 2), 20, torch.float32)
    half = [leaf.bfloat16() for leaf in leaves]
    found_NHK = packed_attention(*half, documents, scale=0.3, form=form)
    assert found_NHK.dtype == torch.bfloat16
    assert_close(found_NHK.float(), packed_attention(*leaves, documents, scale=0.3), 0.03)


@pytest.mark.skipif("compiled" not in FORMS, reason="no compiler")
def test_threads_change_no_bit():
    results = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            leaves, documents, options = draw(SEGMENTS["sorted"], (4, 2), 20, torch.float32)
            leaves = [leaf.requires_grad_() for leaf in leaves]
            out_NHK = packed_attention(*leaves, documents, **options, form="compiled")
            results.append([out_NHK, *torch.autograd.grad(out_NHK.sin().sum(), leaves)])
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))
