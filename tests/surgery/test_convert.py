"""Converting layers: what is copied where, what stays as it was, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hybridize.models import HybridForCausalLM
from hybridize.surgery import calibrate, convert
from hybridize.surgery.fresh import FreshSettings, convert_fresh
from tests.close import assert_close
from tests.tiny import FAMILY_NAMES, as_student, tiny_teacher, tokens

HEADS, KV_HEADS, WIDTH = 4, 2, 8
SHARE = HEADS // KV_HEADS


def shared_rows(weight: Tensor, repeats: int) -> Tensor:
    """Repeat whole heads by hand: head h of the result is head h // repeats of the weight."""
    heads = weight.unflatten(0, (-1, WIDTH))
    return torch.cat([heads[h // repeats] for h in range(len(heads) * repeats)])


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_only_the_converted_mixer_changes(family: str) -> None:
    teacher = as_student(tiny_teacher(family))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = convert(teacher, teacher.layout.convert([2], to="mamba2"))
    assert str(student.layout) == "AAMA" and str(teacher.layout) == "AAAA"
    for name, tensor in student.state_dict().items():
        if not name.startswith("model.layers.2.mixer."):
            assert torch.equal(tensor, before[name]), name
            assert tensor.data_ptr() != teacher.state_dict()[name].data_ptr()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("expand", [1, 2])
def test_mamba2_gets_values_keys_queries_and_output(expand: int) -> None:
    teacher = as_student(tiny_teacher("qwen2"))
    layout = teacher.layout.convert([1], to="mamba2")
    mixer = convert(teacher, layout, options={"expand": expand}).model.layers[1].mixer
    attention = teacher.model.layers[1].self_attn
    inner = expand * HEADS * WIDTH
    x, B, C = mixer.in_proj.weight[inner : -expand * HEADS].split(
        [inner, HEADS * WIDTH, HEADS * WIDTH]
    )
    assert torch.equal(x, shared_rows(attention.v_proj.weight, SHARE * expand))
    assert torch.equal(B, shared_rows(attention.k_proj.weight, SHARE))
    assert torch.equal(C, attention.q_proj.weight)
    biases = [
        shared_rows(attention.v_proj.bias, SHARE * expand),
        shared_rows(attention.k_proj.bias, SHARE),
        attention.q_proj.bias,
    ]
    assert torch.equal(mixer.conv1d.bias, torch.cat(biases))
    output = mixer.out_proj.weight.unflatten(1, (HEADS, expand, WIDTH)).sum(2).flatten(1)
    assert_close(output, attention.o_proj.weight, 1e-6)
    assert torch.equal(mixer.conv1d.weight[..., -1], torch.ones_like(mixer.conv1d.weight[..., -1]))
    assert mixer.conv1d.weight[..., :-1].abs().max() == 0


def test_mamba2_remembers_from_tens_to_thousands_of_tokens() -> None:
    teacher = as_student(tiny_teacher(heads=8, kv_heads=2, width=64))
    layout = teacher.layout.convert([0], to="mamba2")
    mixer = convert(teacher, layout, options={"expand": 2}).model.layers[0].mixer
    steps = torch.nn.functional.softplus(mixer.dt_bias)
    memory = (1 / (steps * mixer.A_log.exp())).view(8, 2)
    assert memory.min() < 10 and memory.max() > 2000
    assert ((memory[:, 1] / memory[:, 0]) > 8).all()


def test_mamba1_gets_values_keys_queries_and_output() -> None:
    teacher = as_student(tiny_teacher("mistral"))
    layout = teacher.layout.convert([1], to="mamba1")
    mixer = convert(teacher, layout, options={"state_size": 4}).model.layers[1].mixer
    attention = teacher.model.layers[1].self_attn
    rows = mixer.in_proj.weight[HEADS * WIDTH :]
    wanted = [attention.v_proj.weight, attention.k_proj.weight, attention.q_proj.weight]
    assert torch.equal(rows, torch.cat(wanted))
    assert torch.equal(mixer.out_proj.weight, attention.o_proj.weight)
    assert torch.equal(mixer.A_log[0].exp().round(), torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_a_draw_depends_on_the_seed_and_the_layer_only() -> None:
    teacher = as_student(tiny_teacher())
    one = convert(teacher, teacher.layout.convert([2], to="mamba2"), seed=3)
    two = convert(teacher, teacher.layout.convert([1, 2], to="mamba2"), seed=3)
    other = convert(teacher, teacher.layout.convert([2], to="mamba2"), seed=4)
    gate = "in_proj.weight"
    rows = [model.model.layers[2].mixer.state_dict()[gate] for model in (one, two, other)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[1], two.model.layers[1].mixer.state_dict()[gate])


def test_random_init_takes_nothing_of_the_attention() -> None:
    teacher = as_student(tiny_teacher())
    layout = teacher.layout.convert([1], to="mamba2")
    other = as_student(tiny_teacher(seed=9))
    other.load_state_dict(
        {n: t for n, t in teacher.state_dict().items() if "layers.1.self_attn" not in n},
        strict=False,
    )
    found = convert(teacher, layout, init="random").state_dict()
    for name, tensor in convert(other, layout, init="random").state_dict().items():
        assert torch.equal(tensor, found[name]), name


def change_everything(model: HybridForCausalLM) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)


def test_layers_converted_before_keep_what_they_learned() -> None:
    teacher = as_student(tiny_teacher())
    first = convert(teacher, teacher.layout.convert([1], to="mamba2"))
    change_everything(first)
    second = convert(first, first.layout.convert([2], to="mamba2"), source=teacher)
    trained = first.state_dict()
    fresh = convert(teacher, teacher.layout.convert([2], to="mamba2")).state_dict()
    for name, tensor in second.state_dict().items():
        origin = fresh if name.startswith("model.layers.2.mixer.") else trained
        assert torch.equal(tensor, origin[name]), name


def test_a_layer_can_get_its_attention_back() -> None:
    teacher = as_student(tiny_teacher())
    student = convert(teacher, teacher.layout.convert([1, 2], to="mamba2"))
    back = convert(student, teacher.layout, source=teacher)
    assert back.config.mixer_options == {}
    assert torch.equal(back(tokens()).logits, teacher(tokens()).logits)
    with pytest.raises(ValueError, match="layer 1 of the source holds mamba2, not attention"):
        convert(student, teacher.layout)


def test_one_kind_has_one_set_of_options() -> None:
    teacher = as_student(tiny_teacher())
    first = convert(teacher, teacher.layout.convert([1], to="mamba2"), options={"expand": 2})
    layout = first.layout.convert([2], to="mamba2")
    with pytest.raises(ValueError, match="One model has one set of options"):
        convert(first, layout, options={"expand": 1}, source=teacher)
    second = convert(first, layout, options={"expand": 2}, source=teacher)
    assert second.config.mixer_options == {"mamba2": {"expand": 2}}


def test_identity_equals_attention_left_out() -> None:
    teacher = as_student(tiny_teacher())
    student = convert(teacher, teacher.layout.convert([1], to="identity"))
    with torch.no_grad():
        teacher.model.layers[1].self_attn.o_proj.weight.zero_()
    assert_close(student(tokens()).logits, teacher(tokens()).logits, 1e-6)


def test_a_bfloat16_teacher_gives_a_bfloat16_student_with_float32_decays() -> None:
    teacher = as_student(tiny_teacher()).to(torch.bfloat16)
    student = convert(teacher, teacher.layout.convert([1], to="mamba2"))
    found = {n: p.dtype for n, p in student.named_parameters() if p.dtype != torch.bfloat16}
    prefix = "model.layers.1.mixer."
    assert found == {f"{prefix}{n}": torch.float32 for n in ("dt_bias", "A_log", "D")}
    assert student(tokens()).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["mamba1", "mamba2"])
def test_calibration_brings_mixers_nearer_to_attention(kind: str) -> None:
    teacher = as_student(tiny_teacher())
    options: dict[str, Any] = {"state_size": 4} if kind == "mamba1" else {}
    text = tokens(4, 64, seed=2)
    errors = {}
    for output in ("copied", "rms", "least_squares"):
        student = convert(teacher, teacher.layout.convert([1, 2], to=kind), options=options)
        fits = calibrate(student, teacher, text, output=output)
        assert [fit.layer for fit in fits] == [1, 2]
        errors[output] = fits[0].error
        if output == "rms":
            sizes = []
            for model in (student, teacher):
                layer = model.model.layers[1]
                ctx = model.make_context(model.model.embed_tokens(text))
                states: list[Tensor] = []
                teacher.hidden(text, states=states)
                sizes.append(layer.mix(layer.input_layernorm(states[1]), ctx).square().mean())
            assert_close(sizes[0], sizes[1], 1e-4)
    assert errors["least_squares"] < 0.95
    assert errors["least_squares"] < min(errors["rms"], errors["copied"])


def test_an_open_gate_is_nearly_constant() -> None:
    teacher = as_student(tiny_teacher())
    student = convert(teacher, teacher.layout.convert([1], to="mamba2"))
    with torch.no_grad():
        student.model.embed_tokens.weight.add_(1)
        teacher.model.embed_tokens.weight.add_(1)
    text = tokens(4, 64, seed=2)
    calibrate(student, teacher, text, output="copied")
    states: list[Tensor] = []
    teacher.hidden(text, states=states)
    layer = student.model.layers[1]
    gates = layer.mixer.in_proj(layer.input_layernorm(states[1]))[..., : HEADS * WIDTH]
    assert_close(gates.mean(), torch.tensor(2.0), 1e-3)
    assert gates.std() < 0.7


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_sliding_gets_the_attention_whole(family: str) -> None:
    teacher = as_student(tiny_teacher(family))
    options = {"window": 24, "sinks": 2}
    student = convert(teacher, teacher.layout.convert([1, 2], to="sliding"), options=options)
    attention = teacher.model.layers[1].self_attn.state_dict()
    copied = student.model.layers[1].mixer.attention.state_dict()
    assert attention.keys() == copied.keys()
    assert all(torch.equal(copied[name], tensor) for name, tensor in attention.items())
    assert torch.equal(student(tokens()).logits, teacher(tokens()).logits)
    beyond = tokens(2, 32)
    found, wanted = student(beyond).logits, teacher(beyond).logits
    assert_close(found[:, :24], wanted[:, :24], 1e-6)
    assert not torch.equal(found[:, 24:], wanted[:, 24:])


def test_a_mixer_without_a_gate_is_left_alone_by_a_recipe_that_calibrates() -> None:
    teacher = as_student(tiny_teacher())
    settings = FreshSettings(options={"window": 24})
    layout = teacher.layout.convert([1], to="sliding")
    calibration = (tokens(), torch.ones(2, 24, dtype=torch.long))
    student = convert_fresh(teacher, layout, settings, source=teacher, calibration=calibration)
    assert torch.equal(student(tokens()).logits, teacher(tokens()).logits)


def test_what_cannot_be_calibrated_is_refused() -> None:
    teacher = as_student(tiny_teacher())
    student = convert(teacher, teacher.layout.convert([1], to="identity"))
    assert calibrate(student, teacher, tokens()) == ()
    with pytest.raises(ValueError, match="layer 1 holds identity"):
        calibrate(student, teacher, tokens(), layers=[1])
    with pytest.raises(ValueError, match="gate 'shut'"):
        calibrate(student, teacher, tokens(), gate="shut")
