"""Keys and values are written behind those held, and are what copying all of them would give."""

import copy

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from hybridize.models.cache import GrowingLayer
from hybridize.models.model import load


def draw(num_tokens, *, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, 3, num_tokens, 4, generator=generator)


def assert_same(one, other):
    assert torch.equal(one.keys, other.keys)
    assert torch.equal(one.values, other.values)
    assert one.get_seq_length() == other.get_seq_length()


def select(layer):
    layer.batch_select_indices(torch.tensor([1, 1, 0]))


CHANGES = {
    "nothing": lambda layer: None,
    "crop": lambda layer: layer.crop(-3),
    "select": select,
    "repeat": lambda layer: layer.batch_repeat_interleave(2),
    "reset": lambda layer: layer.reset(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_tokens_are_those_that_copying_would_hold(change):
    ours, theirs = GrowingLayer(), DynamicLayer()
    for step, num_tokens in enumerate([5, 1, 1, 90, 1, 300, *[1] * 90]):
        keys, values = draw(num_tokens, seed=step)
        for layer in (ours, theirs):
            layer.update(keys, values)
        assert_same(ours, theirs)
    for layer in (ours, theirs):
        CHANGES[change](layer)
    batch = 2 if change == "reset" else len(theirs.keys)
    for step in range(80):
        keys, values = draw(1, batch=batch, seed=1000 + step)
        for layer in (ours, theirs):
            layer.update(keys, values)
        assert_same(ours, theirs)


def test_a_token_moves_nothing_while_there_is_room():
    layer = GrowingLayer()
    layer.update(*draw(100))
    before = layer.keys.data_ptr()
    moves = 0
    for step in range(400):
        layer.update(*draw(1, seed=step))
        moves += layer.keys.data_ptr() != before
        before = layer.keys.data_ptr()
    assert moves <= 5
    assert layer.room[0].shape[2] <= 1.25 * 500 + 64


def test_a_copy_goes_its_own_way():
    one = GrowingLayer()
    one.update(*draw(10))
    other = copy.deepcopy(one)
    one.update(*draw(1, seed=1))
    other.update(*draw(1, seed=2))
    assert not torch.equal(one.keys[:, :, -1], other.keys[:, :, -1])
    assert torch.equal(one.keys[:, :, :10], other.keys[:, :, :10])


def test_gradients_go_through_what_is_held():
    layer = GrowingLayer()
    keys, values = draw(4).requires_grad_().unbind()
    layer.update(keys, values)
    layer.update(keys, values)
    layer.keys.sum().backward()


def test_greedy_answers_are_those_of_a_cache_that_copies(monkeypatch):
    network = load("shipped").network
    ids = torch.arange(10, 40)[None].repeat(3, 1)
    asked = {"max_new_tokens": 100, "min_new_tokens": 100, "do_sample": False}
    ours = network.generate(ids, num_beams=2, **asked)
    monkeypatch.setattr(GrowingLayer, "update", DynamicLayer.update)
    assert torch.equal(ours, network.generate(ids, num_beams=2, **asked))
