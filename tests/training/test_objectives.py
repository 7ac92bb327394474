"""Objectives: what they count, that the teacher stays out of the gradient, and their errors."""

import pytest
import torch
from torch.nn import functional

from hybridize.core.errors import ModelError, RecipeError
from hybridize.training.data import batch
from hybridize.training.objectives import Distillation, NextToken, measure
from tests.training.tiny import RandomRows, TinyModel


def all_logits(model, rows):
    hidden_BTD = model.hidden(rows.input_ids_BT, segments=rows.segments_BT)
    return torch.log_softmax(model.lm_head(hidden_BTD)[:, :-1], -1)


def test_distillation_is_the_kl_over_tokens_that_count():
    student, teacher, rows = TinyModel(1), TinyModel(2), batch(RandomRows(), 0, 3)
    mask_BT = rows.loss_mask_BT[:, 1:]
    student_BTV, teacher_BTV = all_logits(student, rows), all_logits(teacher, rows)
    kl_BT = (student_BTV.exp() * (student_BTV - teacher_BTV)).sum(-1)
    nll_BT = -student_BTV.gather(-1, rows.input_ids_BT[:, 1:, None])[..., 0]
    loss = Distillation(teacher, {"reverse_kl": 1.0, "cross_entropy": 0.5})(student, rows)
    torch.testing.assert_close(loss.parts["reverse_kl"], (kl_BT * mask_BT).sum().detach())
    torch.testing.assert_close(loss.parts["cross_entropy"], (nll_BT * mask_BT).sum().detach())
    torch.testing.assert_close(
        loss.total.detach(), loss.parts["reverse_kl"] + 0.5 * loss.parts["cross_entropy"]
    )
    assert loss.count == int(mask_BT.sum()) == rows.num_counted


def test_the_teacher_runs_once_in_eval_mode_without_gradient():
    student, teacher = TinyModel(1), TinyModel(2, dropout=0.5)
    objective = Distillation(teacher, {"reverse_kl": 0.5, "forward_kl": 0.3, "js": 0.2})
    objective(student, batch(RandomRows(), 0, 2)).total.backward()
    assert teacher.calls == 1 and not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(
        parameter.grad is not None for parameter in student.parameters() if parameter.ndim == 2
    )


def test_temperature_softens_the_divergence_and_not_the_cross_entropy():
    student, teacher, rows = TinyModel(1), TinyModel(2), batch(RandomRows(), 0, 2)
    weights = {"reverse_kl": 1.0, "cross_entropy": 1.0}
    plain = Distillation(teacher, weights)(student, rows)
    soft = Distillation(teacher, weights, temperature=3.0)(student, rows)
    assert soft.parts["reverse_kl"] < plain.parts["reverse_kl"] / 4
    assert soft.parts["cross_entropy"] == plain.parts["cross_entropy"]


def test_heads_padded_differently_are_compared_over_the_tokens_both_have():
    rows = batch(RandomRows(vocab=20), 0, 2)
    padded, teacher = TinyModel(1, vocab=23), TinyModel(2, vocab=20)
    cut = TinyModel(1, vocab=20)
    state = {
        name: tensor[:20] if tensor.shape[0] == 23 else tensor
        for name, tensor in padded.state_dict().items()
    }
    cut.load_state_dict(state)
    loss, wanted = Distillation(teacher)(padded, rows), Distillation(teacher)(cut, rows)
    torch.testing.assert_close(loss.total, wanted.total)
    loss.total.backward()
    assert padded.lm_head.weight.grad[:20].any() and not padded.lm_head.weight.grad[20:].any()
    torch.testing.assert_close(
        Distillation(padded)(teacher, rows).total, Distillation(cut)(teacher, rows).total
    )


def test_padding_that_both_have_counts_like_any_token():
    """A student that would say a padded token is pulled back to the teacher's almost never."""
    student, teacher = TinyModel(1, vocab=24), TinyModel(1, vocab=24)
    rows = batch(RandomRows(vocab=20), 0, 2)
    with torch.no_grad():
        student.lm_head.weight[20:] *= 5
    loss = Distillation(teacher)(student, rows)
    loss.total.backward()
    assert loss.total > 1e-3 and student.lm_head.weight.grad[20:].any()


def test_vocabularies_that_differ_by_more_than_padding_are_refused():
    rows = batch(RandomRows(vocab=20), 0, 1)
    with pytest.raises(ModelError, match=r"vocabulary of 20 tokens, the teacher one of 2000\. Dis"):
        Distillation(TinyModel(1, vocab=2000))(TinyModel(1, vocab=20), rows)


def test_next_token_is_cross_entropy():
    model, rows = TinyModel(1), batch(RandomRows(), 4, 2)
    logits_BTV = model.lm_head(model.hidden(rows.input_ids_BT, rows.segments_BT))[:, :-1]
    targets_BT = torch.where(rows.loss_mask_BT, rows.input_ids_BT, -100)[:, 1:]
    expected = functional.cross_entropy(
        logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="sum"
    )
    loss = NextToken()(model, rows)
    torch.testing.assert_close(loss.total, expected)


def test_measure_is_the_mean_over_tokens_for_any_batch_size():
    student, teacher = TinyModel(1, dropout=0.3).train(), TinyModel(2)
    source, objective = RandomRows(), Distillation(teacher)
    one = measure(student, objective, source, tokens=16 * 6)
    many = measure(student, objective, source, tokens=16 * 6 + 5, rows_per_batch=4)
    assert one["reverse_kl"].value == pytest.approx(many["reverse_kl"].value, rel=1e-6)
    assert 0 < one["reverse_kl"].standard_error < one["reverse_kl"].value
    assert student.training
    other = measure(student, objective, source, tokens=16 * 6, first_row=6)
    assert other != one


def test_measure_goes_through_a_source_that_ends_only_once():
    source = RandomRows()
    source.rows_per_pass = 3
    model, objective = TinyModel(1), NextToken()
    short = measure(model, objective, source, tokens=16 * 3)
    assert measure(model, objective, source, tokens=16 * 100) == short


def plugin(student_NV, teacher_NV, targets_N):
    return (student_NV - teacher_NV).square().sum(-1), 2 * (student_NV - teacher_NV)


def test_a_loss_may_be_a_place_outside_the_package():
    place = "tests.training.test_objectives:plugin"
    loss = Distillation(TinyModel(2), {place: 1.0})(TinyModel(1), batch(RandomRows(), 0, 1))
    assert loss.parts[place] > 0


def test_errors_say_what_to_do():
    with pytest.raises(RecipeError, match="Did you mean reverse_kl"):
        Distillation(TinyModel(), {"revers_kl": 1.0})
    with pytest.raises(RecipeError, match="cannot be imported"):
        Distillation(TinyModel(), {"no.such:loss": 1.0})
    with pytest.raises(RecipeError, match="temperature 0 is not above 0"):
        Distillation(TinyModel(), temperature=0)
