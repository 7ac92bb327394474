"""KL of rounded weights: by its definition, nothing for the same weights, and damage is found."""

import copy

import pytest
import torch

from hybridize.core.errors import ModelError
from hybridize.evaluation import rounding
from hybridize.evaluation.rounding import measure_rounding
from tests.tiny_tasks import shake, task_rows, task_student, task_teacher

NUM_ROWS = 3


@pytest.fixture(scope="module")
def network():
    return shake(task_student(task_teacher()), seed=1, name="s").network.eval()


@pytest.fixture(scope="module")
def rows():
    source = task_rows("heldout")
    return [source.row(index) for index in range(NUM_ROWS)]


def damage(network, size):
    """Add noise to one matrix."""
    copied = copy.deepcopy(network)
    weight = copied.model.layers[1].mlp.down_proj.weight
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight.add_(size * weight.std() * torch.randn(weight.shape, generator=generator))
    return copied


def test_the_same_weights_are_no_nat_away(network, rows):
    found = measure_rounding(network, copy.deepcopy(network), rows)
    assert found.kl == 0 and found.top1 == 1 and found.kl_error == 0
    assert found.tokens == sum(int(row.loss_mask_T[1:].sum()) for row in rows)
    assert found.documents == sum(len(row.segments_T[row.loss_mask_T].unique()) for row in rows)


@torch.no_grad()
def test_kl_is_that_of_the_definition_over_all_documents(network, rows, monkeypatch):
    other = damage(network, 0.5)
    sums = []
    for row in rows:
        for number in row.segments_T[row.loss_mask_T].unique():
            inside = row.segments_T == number
            ids, counted = row.input_ids_T[inside][None], row.loss_mask_T[inside][1:]
            p, q = (
                torch.distributions.Categorical(logits=one(ids).logits[0, :-1][counted].double())
                for one in (network, other)
            )
            kl = torch.distributions.kl_divergence(p, q)
            same = p.logits.argmax(-1) == q.logits.argmax(-1)
            sums.append((float(kl.sum()), int(same.sum()), len(kl)))
    total = sum(count for *_, count in sums)
    mean = sum(kl for kl, *_ in sums) / total
    factor = len(sums) / (len(sums) - 1)
    error = (factor * sum((kl - mean * count) ** 2 for kl, _, count in sums)) ** 0.5 / total
    monkeypatch.setattr(rounding, "LOGITS_AT_ONCE", 7 * network.config.vocab_size)
    found = measure_rounding(network, other, rows)
    assert found.kl == pytest.approx(mean, rel=1e-4) and found.kl > 1e-4
    assert found.kl_error == pytest.approx(error, rel=1e-4)
    assert found.top1 == pytest.approx(sum(same for _, same, _ in sums) / total)


def test_more_damage_is_more_kl(network, rows):
    found = [measure_rounding(network, damage(network, size), rows).kl for size in (0.03, 0.1, 0.5)]
    assert 0 < found[0] < found[1] < found[2]


def test_numbers_that_are_none_and_text_that_does_not_count_are_refused(network, rows):
    broken = damage(network, float("nan"))
    with pytest.raises(ModelError, match="numbers that are none"):
        measure_rounding(network, broken, rows)
    silent = [type(row)(row.input_ids_T, row.segments_T, row.loss_mask_T & False) for row in rows]
    with pytest.raises(ModelError, match="no token of the held-out text counts"):
        measure_rounding(network, network, silent)
