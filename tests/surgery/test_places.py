"""What a teacher adds to plain attention has its place in each mixer: biases, norms, fused rows."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybridize.models import HybridForCausalLM
from hybridize.surgery import calibrate, convert, plan_weights
from tests.close import assert_close
from tests.tiny import as_student, tiny_teacher, tokens

HEADS, KV_HEADS, WIDTH = 4, 2, 8
BIASES = {"attention_bias": True}
TEACHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "bias": ("qwen2", {}),
    "bias-of-output": ("granite", BIASES),
    "fused": ("phi3", {}),
    "norm-of-heads": ("qwen3", BIASES),
    "norm-of-all-heads": ("olmo2", BIASES),
}
DIRECTION_ONLY = ("norm-of-heads", "norm-of-all-heads")


@pytest.fixture(params=TEACHERS)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(case: str, kind: str, **options: Any) -> tuple[HybridForCausalLM, nn.Module, nn.Module]:
    """Return the teacher, its attention in layer 1, and the mixer in its place."""
    family, changes = TEACHERS[case]
    teacher = as_student(tiny_teacher(family, **changes))
    student = convert(teacher, teacher.layout.convert([1], to=kind), options=options)
    return teacher, teacher.model.layers[1].self_attn, student.model.layers[1].mixer


def draw_hidden() -> Tensor:
    return torch.randn(2, 9, HEADS * WIDTH, generator=torch.Generator().manual_seed(3))


def project(attention: Any, hidden_BTD: Tensor) -> dict[str, Tensor]:
    """Project as the attention itself does before it turns positions, (B, T, E) each."""
    if hasattr(attention, "qkv_proj"):
        sizes = [HEADS * WIDTH, KV_HEADS * WIDTH, KV_HEADS * WIDTH]
        return dict(zip("qkv", attention.qkv_proj(hidden_BTD).split(sizes, dim=-1), strict=True))
    made = {name: getattr(attention, f"{name}_proj")(hidden_BTD) for name in "qkv"}
    for name in "qk":
        norm = getattr(attention, f"{name}_norm", None)
        if norm is not None and len(norm.weight) == WIDTH:
            made[name] = norm(made[name].unflatten(-1, (-1, WIDTH))).flatten(2)
        elif norm is not None:
            made[name] = norm(made[name])
    return made


def share(values_BTX: Tensor) -> Tensor:
    """Repeat the heads of keys or values over the query heads, by hand."""
    heads = values_BTX.unflatten(-1, (-1, WIDTH))
    return torch.stack([heads[:, :, h // (HEADS // KV_HEADS)] for h in range(HEADS)], 2).flatten(2)


def assert_projected(found: Tensor, wanted: Tensor, case: str) -> None:
    """Compare; behind a norm, up to one positive factor for what the norm divides by at once."""
    if case in DIRECTION_ONLY:
        width = WIDTH if case == "norm-of-heads" else wanted.shape[-1]
        found, wanted = (x.unflatten(-1, (-1, width)) for x in (found, wanted))
        found, wanted = (nn.functional.normalize(x, dim=-1) for x in (found, wanted))
    assert_close(found, wanted, 1e-5)


def test_mamba2_convolves_what_attention_projects(case: str) -> None:
    _, attention, mixer = make(case, "mamba2")
    hidden_BTD = draw_hidden()
    wanted = project(attention, hidden_BTD)
    inner = HEADS * WIDTH
    found_BTX = mixer.in_proj(hidden_BTD)[..., inner:-HEADS] + mixer.conv1d.bias
    x, B, C = found_BTX.split(inner, dim=-1)
    assert_close(x, share(wanted["v"]), 1e-5)
    assert_projected(C, wanted["q"], case)
    assert_projected(B.unflatten(-1, (-1, 2, WIDTH))[..., 0, :].flatten(2), wanted["k"], case)
    assert_close(B, share(B.unflatten(-1, (-1, 2, WIDTH))[..., 1, :].flatten(2)), 1e-6)
    assert_close(mixer.out_proj.weight, attention.o_proj.weight, 0)


def test_gated_delta_convolves_what_attention_projects(case: str) -> None:
    _, attention, mixer = make(case, "gated_delta", conv_bias=True)
    hidden_BTD = draw_hidden()
    wanted = project(attention, hidden_BTD)
    taps = mixer.conv1d.weight[:, 0, -1]
    convolved_BTX = mixer.in_proj_qkv(hidden_BTD) * taps + mixer.conv1d.bias
    q, k, v = (convolved_BTX / taps).split(HEADS * WIDTH, dim=-1)
    assert_close(v, share(wanted["v"]), 1e-5)
    assert_projected(q, wanted["q"], case)
    assert_projected(k.unflatten(-1, (-1, 2, WIDTH))[..., 0, :].flatten(2), wanted["k"], case)
    assert_close(mixer.out_proj.weight, attention.o_proj.weight, 0)


def test_mamba1_with_biases_reads_what_attention_projects(case: str) -> None:
    _, attention, mixer = make(case, "mamba1", state_size=4, linear_bias=True)
    hidden_BTD = draw_hidden()
    wanted = project(attention, hidden_BTD)
    rows = mixer.in_proj(hidden_BTD)[..., HEADS * WIDTH :]
    if attention.state_dict().keys().isdisjoint({"q_proj.bias"}):
        rows = rows - mixer.in_proj.bias[HEADS * WIDTH :]
    x, B, C = rows.split([KV_HEADS * WIDTH, KV_HEADS * WIDTH, HEADS * WIDTH], dim=-1)
    assert_close(x, wanted["v"], 1e-5)
    assert_projected(B, wanted["k"], case)
    assert_projected(C, wanted["q"], case)
    assert_close(mixer.out_proj.weight, attention.o_proj.weight, 0)
    if getattr(attention.o_proj, "bias", None) is not None:
        assert_close(mixer.out_proj.bias, attention.o_proj.bias, 0)


@pytest.mark.parametrize("repeat", ["aligned", "state"])
def test_mamba1_without_biases_keeps_that_of_values_behind_its_taps(repeat: str) -> None:
    _, attention, mixer = make("bias", "mamba1", state_size=4, repeat=repeat)
    hidden_BTD = draw_hidden()
    x_BTX = mixer.in_proj(hidden_BTD).split(mixer.inner_size, dim=-1)[1][..., : KV_HEADS * WIDTH]
    shared_BTE = mixer._share(x_BTX + attention.v_proj.bias)
    wanted_BET = nn.functional.conv1d(shared_BTE.mT, mixer.conv1d.weight, groups=mixer.inner_size)
    found_BET = mixer.conv1d(mixer._share(x_BTX).mT)
    assert_close(found_BET, wanted_BET, 1e-5)


def test_sliding_keeps_every_tensor_of_the_attention(case: str) -> None:
    _, attention, mixer = make(case, "sliding", window=8)
    found = mixer.attention.state_dict()
    assert found.keys() == attention.state_dict().keys()
    assert all(torch.equal(found[name], held) for name, held in attention.state_dict().items())


DROPPED = {
    ("bias", "mamba2"): [],
    ("bias", "mamba1"): ["k_proj.bias", "q_proj.bias"],
    ("bias", "gated_delta"): ["k_proj.bias", "q_proj.bias", "v_proj.bias"],
    ("bias-of-output", "mamba2"): ["o_proj.bias"],
    ("norm-of-heads", "mamba2"): ["o_proj.bias"],
    ("norm-of-all-heads", "mamba2"): ["o_proj.bias"],
    ("norm-of-all-heads", "sliding"): [],
    ("fused", "mamba2"): [],
    ("fused", "mamba1"): [],
    ("fused", "identity"): ["o_proj.weight", "qkv_proj.weight"],
}


@pytest.mark.parametrize(("case", "kind"), DROPPED)
def test_what_has_no_place_is_listed_with_the_reason(case: str, kind: str) -> None:
    family, changes = TEACHERS[case]
    teacher = as_student(tiny_teacher(family, **changes))
    options = {"state_size": 4} if kind == "mamba1" else {}
    weights = plan_weights(teacher, teacher.layout.convert([1], to=kind), options=options)
    prefix = "teacher:model.layers.1.self_attn."
    found = {k.removeprefix(prefix): v for k, v in weights.dropped.items() if k.startswith(prefix)}
    assert sorted(found) == DROPPED[case, kind]
    for name, reason in found.items():
        assert reason == "the mixer adds no bias there" or not name.endswith("bias")


@pytest.mark.parametrize("family", ["olmo2", "granite", "phi3"])
def test_calibration_reads_what_the_mixer_of_the_family_reads(family: str) -> None:
    teacher = as_student(tiny_teacher(family))
    student = convert(teacher, teacher.layout.convert([1, 3], to="mamba2"))
    fits = calibrate(student, teacher, tokens(4, 64, seed=2), output="least_squares")
    assert [fit.layer for fit in fits] == [1, 3]
    assert all(fit.error < min(fit.error_before, 0.8) for fit in fits)
