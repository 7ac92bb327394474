"""Parameter groups, schedules in tokens, and the choice of what is trained."""

from itertools import pairwise

import pytest
import torch

from hybridize.core.errors import RecipeError
from hybridize.training.optim import (
    Optimizers,
    OptimizerSettings,
    ScheduleSettings,
    training_only,
)
from tests.training.tiny import TinyModel


def scales(total=100, step=10, **settings):
    schedule = ScheduleSettings(**settings)
    return [schedule.scale(place, place + step, total) for place in range(0, total, step)]


def test_schedules_in_tokens():
    assert scales() == [1.0] * 10
    assert scales(warmup=0.2)[:3] == pytest.approx([0.5, 1.0, 1.0])
    wsd = scales(name="wsd", warmup=0.1, decay=0.4)
    assert wsd == pytest.approx([1] * 7 + [0.75, 0.5, 0.25])
    cosine = scales(name="cosine", final=0.1)
    assert cosine[0] == pytest.approx(1.0) and cosine[5] == pytest.approx(0.55)
    assert all(a > b for a, b in pairwise(cosine)) and cosine[-1] > 0.1


def test_no_step_is_lost_at_a_rate_of_zero():
    for name in ("constant", "cosine", "wsd"):
        for steps in (1, 2, 3, 50):
            assert min(scales(steps, 1, name=name, warmup=0.1, decay=0.5)) > 0


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_each_parameter_has_the_optimizer_and_decay_that_suits_it(name):
    model = TinyModel(layers=1)
    named = dict(model.named_parameters())
    optimizers = Optimizers(model, named, OptimizerSettings(name=name, weight_decay=0.3))
    found = {
        optimizers._names[parameter]: (type(part).__name__, group["weight_decay"])
        for part in optimizers._parts
        for group in part.param_groups
        for parameter in group["params"]
    }
    matrices = {"layers.0.mixer.in_proj.weight", "layers.0.mlp.0.weight", "layers.0.mlp.2.weight"}
    decayed = {key for key, (_, decay) in found.items() if decay == 0.3}
    assert found.keys() == named.keys()
    assert decayed == {*matrices, "lm_head.weight"}
    by_muon = {key for key, (kind, _) in found.items() if kind == "Muon"}
    assert by_muon == (matrices if name == "muon" else set())


def test_a_tied_head_has_no_decay():
    model = TinyModel(layers=1)
    model.lm_head.weight = model.embed.weight
    optimizers = Optimizers(model, dict(model.named_parameters()), OptimizerSettings())
    assert any(p is model.embed.weight for p in optimizers._parts[0].param_groups[1]["params"])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_state_goes_on_bit_for_bit(name):
    def gradients(model, seed):
        make = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=make)

    models = [TinyModel(3), TinyModel(3)]
    settings = OptimizerSettings(name=name)
    first, second = (Optimizers(m, dict(m.named_parameters()), settings) for m in models)
    for seed in range(2):
        gradients(models[0], seed)
        first.step(1.0)
    models[1].load_state_dict(models[0].state_dict())
    second.load({key: value.clone() for key, value in first.tensors().items()})
    for model, optimizers in zip(models, (first, second), strict=True):
        gradients(model, 9)
        assert optimizers.step(0.5) == settings.lr / 2
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("train", "chosen"),
    [
        (("all",), lambda name: True),
        (("mixer",), lambda name: ".mixer." in name),
        (("layers.1.*", "lm_head*"), lambda name: name.startswith(("layers.1.", "lm_head"))),
    ],
)
def test_only_the_chosen_parameters_are_trained_and_only_inside(train, chosen):
    model = TinyModel()
    model.embed.weight.requires_grad_(False)
    with training_only(model, train) as parameters:
        assert parameters.keys() == {name for name, _ in model.named_parameters() if chosen(name)}
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == chosen(name)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["embed.weight"]


def test_settings_that_cannot_be_are_refused():
    with (
        pytest.raises(RecipeError, match="train mixr chooses no parameter"),
        training_only(TinyModel(), ("mixr",)),
    ):
        pass
    with pytest.raises(RecipeError, match="known: adamw, muon"):
        OptimizerSettings(name="sgd")
    with pytest.raises(RecipeError, match=r"schedule.decay 20 is not a share"):
        ScheduleSettings(decay=20)
