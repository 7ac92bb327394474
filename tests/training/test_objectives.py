"""Objectives: what they count, that the teacher stays out of the gradient, and their errors."""

import pytest
import torch
from torch.nn import functional

from hybridize.core.errors import Interrupted, ModelError, RecipeError
from hybridize.core.loss_weights import LossWeight
from hybridize.surgery.apply import convert
from hybridize.training.data import batch
from hybridize.training.distributed import prepared_layers
from hybridize.training.loop import fit
from hybridize.training.objectives import Distillation, NextToken, at_share, measure
from hybridize.training.settings import FitSettings
from hybridize.training.states import hidden_states, mixer_outputs, watched
from tests.tiny import as_student, tiny_teacher
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


def plugin(student_NV, ratio_NV, targets_N):
    return ratio_NV.square().sum(-1), 2 * ratio_NV


def test_a_loss_may_be_a_place_outside_the_package():
    place = "tests.training.test_objectives:plugin"
    loss = Distillation(TinyModel(2), {place: 1.0})(TinyModel(1), batch(RandomRows(), 0, 1))
    assert loss.parts[place] > 0


def test_every_counted_token_contributes_and_no_other():
    """By name: each token whose next token counts moves the loss, and each other does not."""
    student, teacher, rows = TinyModel(1), TinyModel(2), batch(RandomRows(), 0, 3)
    weights = {"reverse_kl": 1.0, "cross_entropy": 0.5, "hidden_states": 1.0}
    counted = set(rows.predicting_N.tolist())
    for chunk_tokens in (1, 4, 7, 1000):
        kept = {}
        hidden = student.hidden

        def keep(*inputs, hidden=hidden, kept=kept, **named):
            kept["states"] = hidden(*inputs, **named).detach().requires_grad_()
            return kept["states"]

        student.hidden = keep
        loss = Distillation(teacher, weights, chunk_tokens=chunk_tokens)(student, rows)
        del student.hidden
        (gradient_BTD,) = torch.autograd.grad(loss.total, kept["states"])
        sizes = gradient_BTD.flatten(0, 1).norm(dim=-1)
        assert {token for token, size in enumerate(sizes.tolist()) if size > 0} == counted
        assert loss.count == len(counted) > 10


def test_a_weight_goes_from_start_to_end_in_a_straight_line():
    student, teacher, rows = TinyModel(1), TinyModel(2), batch(RandomRows(), 0, 2)
    ramp = LossWeight(start=1.0, end=0.0)
    objective = Distillation(teacher, {"reverse_kl": 1.0, "cross_entropy": ramp})
    for share in (0.0, 0.25, 1.0):
        loss = at_share(objective, share)(student, rows)
        wanted = loss.parts["reverse_kl"] + (1 - share) * loss.parts["cross_entropy"]
        torch.testing.assert_close(loss.total.detach(), wanted)
    assert objective.identity["loss"]["cross_entropy"]["end"] == 0.0
    assert at_share(NextToken, 0.5) is NextToken


def test_fit_moves_the_weights_by_tokens_and_resumes_exactly(tmp_path):
    teacher, source = TinyModel(2), RandomRows()
    settings = FitSettings(tokens=16 * 8, tokens_per_step=32)
    ramp = {"reverse_kl": LossWeight(start=0.0, end=1.0), "cross_entropy": LossWeight(end=0.0)}
    seen = []

    def run(out, stop=None):
        model = TinyModel(1)
        objective = Distillation(teacher, ramp)
        fit(model, objective, source, settings, out, progress=seen.append, stop=stop)
        return model.state_dict()

    whole = run(tmp_path / "whole")
    for record, share in zip(seen, (0, 0.25, 0.5, 0.75), strict=True):
        parts = record.parts
        wanted = share * parts["reverse_kl"] + (1 - share) * parts["cross_entropy"]
        assert record.loss == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", stop=lambda: len(seen) >= 6)
    torch.testing.assert_close(run(tmp_path / "cut"), whole, rtol=0, atol=0)


def relative(student_ND, teacher_ND):
    return ((student_ND - teacher_ND).square().sum(-1) / teacher_ND.square().sum(-1)).sum()


def hybrids():
    teacher = as_student(tiny_teacher())
    student = convert(teacher, teacher.layout.convert([1, 2], to="mamba2"), seed=3)
    return student, teacher


@pytest.mark.parametrize("layers", [None, {1: 0.5, 3: 2.0}])
@pytest.mark.parametrize("name", ["hidden_states", "mixer_outputs"])
def test_losses_of_layers_are_weighted_relative_errors_of_counted_tokens(name, layers):
    student, teacher = hybrids()
    rows = batch(RandomRows(vocab=64), 0, 2)
    weight = LossWeight(start=0.3, layers=layers)
    loss = Distillation(teacher, {name: weight})(student, rows)
    found = [collect(model, name, rows) for model in (student, teacher)]
    weights = layers or dict.fromkeys(range(4), 0.25)
    wanted = sum(weights[layer] * relative(found[0][layer], found[1][layer]) for layer in weights)
    torch.testing.assert_close(loss.parts[name], wanted.detach())
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    got = torch.autograd.grad(loss.total, parameters, allow_unused=True)
    expected = torch.autograd.grad(0.3 * wanted, parameters, allow_unused=True)
    torch.testing.assert_close(got, expected)
    same = Distillation(teacher, {name: 1.0})(teacher, rows)
    assert same.total == 0 and loss.total > 0


def collect(model, name, rows):
    """Run layer by layer, by hand; mixer outputs from the sublayers' own inputs."""
    states = []
    embedded_BTD = model.model.embed_tokens(rows.input_ids_BT)
    ctx = model.make_context(embedded_BTD, segments_BT=rows.segments_BT)
    for layer in model.model.layers:
        mixed_BTD = layer.mix(layer.normalize(embedded_BTD, layer.norms.before_mixer), ctx)
        embedded_BTD = layer(embedded_BTD, ctx)
        states.append(mixed_BTD if name == "mixer_outputs" else embedded_BTD)
    return [state_BTD.flatten(0, 1)[rows.predicting_N] for state_BTD in states]


@pytest.mark.parametrize("name", ["hidden_states", "mixer_outputs"])
def test_layers_computed_again_give_the_same_gradients(name):
    student, teacher = hybrids()
    rows = batch(RandomRows(vocab=64), 0, 2)
    objective = Distillation(teacher, {name: 1.0, "reverse_kl": 1.0})
    gradients = []
    for recompute in (False, True):
        student.zero_grad()
        with prepared_layers(student, recompute=recompute, compiled=False):
            objective(student.train(), rows).total.backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in student.parameters()])
    torch.testing.assert_close(*gradients)


def test_what_is_kept_of_layers_is_as_small_as_the_page_says():
    """Of a frozen model only counted tokens, and nothing is left watched afterwards."""
    _, teacher = hybrids()
    rows = batch(RandomRows(vocab=64), 0, 2)
    losses = {"hidden_states": hidden_states, "mixer_outputs": mixer_outputs}
    layers = dict.fromkeys(losses, (0, 2))
    with torch.no_grad(), watched(teacher, losses, layers, rows.predicting_N) as states:
        teacher.hidden(rows.input_ids_BT, rows.segments_BT)
    shapes = {state.shape for state in states._kept.values()}
    assert len(states._kept) == 4
    assert shapes == {(len(rows.predicting_N), teacher.config.hidden_size)}
    for layer in teacher.model.layers:
        assert not layer._forward_hooks and "mix" not in vars(layer)


def test_losses_of_layers_that_cannot_be_are_refused_in_words():
    _, teacher = hybrids()
    rows = batch(RandomRows(vocab=64), 0, 1)
    with pytest.raises(RecipeError, match="there is no layer 7; layers are 0 to 3"):
        Distillation(teacher, {"hidden_states": LossWeight(layers={7: 1.0})})
    with pytest.raises(RecipeError, match="js is not one between layers: remove its layers"):
        Distillation(teacher, {"js": LossWeight(layers={0: 1.0})})
    with pytest.raises(ModelError, match="no `mix`"):
        Distillation(TinyModel(), {"mixer_outputs": 1.0})(TinyModel(1), rows)
    with pytest.raises(ModelError, match="layer 0: the student's states have 10 values"):
        Distillation(TinyModel(), {"hidden_states": 1.0})(TinyModel(1, width=10), rows)
    with pytest.raises(ModelError, match="there is no layer 1; layers are 0 to 0"):
        Distillation(TinyModel(), {"hidden_states": 1.0})(TinyModel(1, layers=1), rows)


def test_heads_that_are_cut_keep_their_divisor():
    rows = batch(RandomRows(vocab=20), 0, 2)
    padded, teacher = TinyModel(1, vocab=23), TinyModel(2, vocab=20)
    plain = Distillation(teacher)(padded, rows)
    padded.lm_head.divisor = teacher.lm_head.divisor = 4.0
    assert Distillation(teacher)(padded, rows).total < plain.total / 4


def test_errors_say_what_to_do():
    with pytest.raises(RecipeError, match="Did you mean reverse_kl"):
        Distillation(TinyModel(), {"revers_kl": 1.0})
    with pytest.raises(RecipeError, match="cannot be imported"):
        Distillation(TinyModel(), {"no.such:loss": 1.0})
    with pytest.raises(RecipeError, match="temperature 0 is not above 0"):
        Distillation(TinyModel(), temperature=0)
