"""Converting to gated_delta: what of the attention goes where, and how a student starts."""

import math

import pytest
import torch
from torch import Tensor

from hybridize.models.loading import load_model, load_tokenizer
from hybridize.surgery import calibrate, convert
from hybridize.surgery.apply import plan_weights
from hybridize.training.data import TaskRows, batch
from hybridize.training.loop import FitSettings, Heldout, fit
from hybridize.training.objectives import Distillation
from hybridize.training.optim import OptimizerSettings
from tests.close import assert_close
from tests.tiny import as_student, tiny_teacher, tokens

HEADS, WIDTH = 4, 8
SHARE = 2
"""Query heads to a key head."""


def share_rows(weight: Tensor, repeats: int) -> Tensor:
    """Repeat whole heads by hand: head h of the result is head h // repeats of the weight."""
    heads = weight.unflatten(0, (-1, WIDTH))
    return torch.cat([heads[h // repeats] for h in range(len(heads) * repeats)])


@pytest.mark.parametrize("expand", [1, 2])
def test_it_gets_queries_keys_values_and_output(expand: int) -> None:
    teacher = as_student(tiny_teacher("qwen2"))
    layout = teacher.layout.convert([1], to="gated_delta")
    options = {"expand": expand, "conv_bias": True}
    mixer = convert(teacher, layout, options=options).model.layers[1].mixer
    attention = teacher.model.layers[1].self_attn
    sizes = [HEADS * WIDTH, HEADS * WIDTH, expand * HEADS * WIDTH]
    shares = {"q_proj": 1, "k_proj": SHARE, "v_proj": SHARE * expand}
    rows = mixer.in_proj_qkv.weight.split(sizes)
    biases = mixer.conv1d.bias.split(sizes)
    taps = mixer.conv1d.weight[:, 0].split(sizes)
    for (name, share), row, bias, tap in zip(shares.items(), rows, biases, taps, strict=True):
        projection = getattr(attention, name)
        assert torch.equal(row, share_rows(projection.weight, share))
        assert_close(bias, tap[:, -1] * share_rows(projection.bias, share), 1e-6)
        assert tap[:, :-1].abs().max() == 0
    output = mixer.out_proj.weight.unflatten(1, (HEADS, expand, WIDTH)).sum(2).flatten(1)
    assert_close(output, attention.o_proj.weight, 1e-6)


def test_biases_without_a_place_are_listed() -> None:
    teacher = as_student(tiny_teacher("qwen2"))
    weights = plan_weights(teacher, teacher.layout.convert([1], to="gated_delta"))
    for part in "qkv":
        reason = weights.dropped[f"teacher:model.layers.1.self_attn.{part}_proj.bias"]
        assert reason == "the mixer adds no bias there"


def test_queries_and_keys_have_the_directions_of_the_normed_ones() -> None:
    """With the norm's weights in the rows, only the length differs, and the mixer drops lengths."""
    teacher = as_student(tiny_teacher("qwen3"))
    mixer = convert(teacher, teacher.layout.convert([1], to="gated_delta")).model.layers[1].mixer
    attention = teacher.model.layers[1].self_attn
    hidden_BTD = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    split = mixer.in_proj_qkv(hidden_BTD).unflatten(-1, (-1, HEADS, WIDTH)).unbind(2)
    queries = attention.q_norm(attention.q_proj(hidden_BTD).unflatten(-1, (HEADS, WIDTH)))
    keys = attention.k_norm(attention.k_proj(hidden_BTD).unflatten(-1, (-1, WIDTH)))
    for ours, theirs in ((split[0], queries), (split[1], keys.repeat_interleave(SHARE, dim=2))):
        assert_close(
            ours / ours.norm(dim=-1, keepdim=True), theirs / theirs.norm(dim=-1, keepdim=True), 1e-4
        )
        passed = torch.nn.functional.silu(0.1 * ours)
        assert torch.cosine_similarity(passed, theirs, dim=-1).min() > 0.97


def test_it_remembers_from_tens_to_thousands_of_tokens() -> None:
    teacher = as_student(tiny_teacher(heads=8, kv_heads=2, width=64))
    layout = teacher.layout.convert([0], to="gated_delta")
    mixer = convert(teacher, layout, options={"expand": 2}).model.layers[0].mixer
    steps = torch.nn.functional.softplus(mixer.dt_bias)
    memory = (1 / (steps * mixer.A_log.exp())).view(8, 2)
    assert memory.min() < 10 and memory.max() > 2000
    assert ((memory[:, 1] / memory[:, 0]) > 8).all()


def test_calibration_brings_it_nearer_to_attention() -> None:
    teacher = as_student(tiny_teacher())
    with torch.no_grad():  # so that a linear map of the layer's input can be nearly constant
        teacher.model.embed_tokens.weight.add_(1)
    text = tokens(4, 64, seed=2)
    errors = {}
    for output in ("copied", "rms", "least_squares"):
        student = convert(teacher, teacher.layout.convert([1, 2], to="gated_delta"))
        fits = calibrate(student, teacher, text, output=output)
        assert [fit.layer for fit in fits] == [1, 2]
        errors[output] = fits[0].error
    assert errors["least_squares"] < min(0.95, errors["rms"], errors["copied"])
    states: list[Tensor] = []
    teacher.hidden(text, states=states)
    layer = student.model.layers[1]
    hidden_BTD = layer.input_layernorm(states[1])
    gates = layer.mixer.in_proj_z(hidden_BTD)
    writes = layer.mixer.in_proj_b(hidden_BTD).sigmoid()
    assert_close(gates.mean(), torch.tensor(2.0), 1e-3)
    assert 0.85 < writes.mean() < 0.95 and writes.std() < 0.1


def test_a_bfloat16_student_keeps_float32_decays() -> None:
    teacher = as_student(tiny_teacher()).to(torch.bfloat16)
    student = convert(teacher, teacher.layout.convert([1], to="gated_delta"))
    found = {n: p.dtype for n, p in student.named_parameters() if p.dtype != torch.bfloat16}
    prefix = "model.layers.1.mixer."
    assert found == {f"{prefix}{n}": torch.float32 for n in ("dt_bias", "A_log")}
    assert student(tokens()).logits.dtype == torch.bfloat16


def test_an_expansion_that_does_not_exist_is_refused() -> None:
    teacher = as_student(tiny_teacher())
    with pytest.raises(ValueError, match="gated_delta: expand 3 does not exist"):
        convert(teacher, teacher.layout.convert([1], to="gated_delta"), options={"expand": 3})


def test_a_student_of_the_shipped_teacher_learns_in_few_steps() -> None:
    teacher, tokenizer = load_model("shipped"), load_tokenizer("shipped")
    student = convert(teacher, teacher.layout.convert((3, 5, 7, 9, 11), to="gated_delta"))
    rows, heldout = (
        TaskRows(tokenizer, sequence_length=256, seed=0, split=split)
        for split in ("train", "heldout")
    )
    text = batch(rows, 1000, 12)
    calibrate(student, teacher, text.input_ids_BT, text.segments_BT)
    result = fit(
        student,
        Distillation(teacher),
        rows,
        FitSettings(tokens=5_120, tokens_per_step=256, optimizer=OptimizerSettings(lr=1e-3)),
        heldout=Heldout(source=heldout, tokens=1_024),
    )
    before, after = (measured["reverse_kl"] for measured in (result.heldout_before, result.heldout))
    assert before < math.log(teacher.config.vocab_size)  # better than knowing nothing
    assert result.steps == 20 and after < 0.6 * before
