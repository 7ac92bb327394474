"""Merging: either end, the middle, any order, and what is refused."""

import pytest
import torch

from hybridize.core.errors import ModelError
from hybridize.stages import merge
from hybridize.stages.merge import MergeSettings
from tests.tiny_tasks import shake, task_student, task_teacher


@pytest.fixture(scope="module")
def teacher():
    return task_teacher()


@pytest.fixture(scope="module")
def models(teacher):
    student = task_student(teacher, "AMAM")
    return [shake(student, seed=seed, name=f"h2-{seed}") for seed in (1, 2, 3)]


def states(*models):
    return [model.network.state_dict() for model in models]


def merged(models, *weights):
    return merge.run(models, MergeSettings(weights=weights))


@pytest.mark.parametrize(("weights", "end"), [((1.0, 0.0), 0), ((0.0, 3.0), 1)])
def test_all_weight_on_one_model_gives_it_back(models, weights, end):
    found, wanted = states(merged(models[:2], *weights), models[end])
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_swapped_weights_give_the_same(models):
    one, two = models[:2]
    first, second = states(merged([one, two], 0.3, 0.7), merged([two, one], 0.7, 0.3))
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor), name


def test_weights_are_shares_and_equal_where_none_are_given(models):
    found, twice = states(merged(models), merged(models, 2.0, 2.0, 2.0))
    parts = states(*models)
    for name, tensor in found.items():
        mean = sum(part[name].double() for part in parts) / 3
        assert torch.allclose(tensor.double(), mean, atol=1e-7), name
        assert tensor.dtype == parts[0][name].dtype
        assert torch.equal(twice[name], tensor)


def test_the_merged_model_is_new_and_named(models):
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in states(*models)]
    found = merge.run(models, MergeSettings(), name="blend")
    assert (found.name, found.layout) == ("blend", models[0].layout)
    with torch.no_grad():
        for parameter in found.network.parameters():
            parameter.zero_()
    for state, kept in zip(states(*models), before, strict=True):
        for name, tensor in state.items():
            assert torch.equal(tensor, kept[name]), name


def test_different_layouts_are_refused_with_both_strips(teacher, models):
    other = task_student(teacher, "MMAA", name="other")
    with pytest.raises(ModelError) as caught:
        merge.run([models[0], other], MergeSettings())
    message = str(caught.value)
    assert "h2-1 and other have different layouts" in message
    assert "AMAM" in message
    assert "MMAA" in message


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0, 1.0), (0.0, 0.0)])
def test_weights_that_do_not_fit_are_refused(models, weights):
    with pytest.raises(ModelError, match=r"for 2 models\. Give one weight for each model"):
        merged(models[:2], *weights)


def test_an_unknown_method_is_refused(models):
    with pytest.raises(ModelError, match=r"'slerp' is not a merge method \(known: linear\)"):
        merge.run(models, MergeSettings(method="slerp"))
