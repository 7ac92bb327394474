"""Which form runs and why; every form that can run against the token loop; compilers that fail."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybridize.ops import causal_conv, forms, native, ssd
from hybridize.ops.forms import Form
from hybridize.ops.self_check import measure_error
from tests.close import assert_close
from tests.ops.test_parity import FLOAT32, FLOAT64, OPS, draw_segments

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent.parent
CHUNKED = "hybridize.ops.ssd.chunked:ssd_chunked"
TWO = {
    "quick": Form(place=CHUNKED, obstacle="tests.ops.test_forms:refuse", speedup=6, short=2),
    "middle": Form(place=CHUNKED, speedup=3, short=4),
    "gpu": Form(place=CHUNKED, devices=("gpu",)),
    "reference": Form(place="hybridize.ops.ssd.reference:ssd_reference"),
}


def refuse(device: torch.device) -> str:
    return f"{device.type} is tired"


def list_other_forms() -> list[tuple[str, str]]:
    return [
        (operator, name)
        for operator, known in forms.list_operators().items()
        for name, form in known.items()
        if operator in OPS and name != "reference" and form.find_obstacle(CPU) is None
    ]


@pytest.fixture(autouse=True)
def no_preference():
    forms.prefer(None)
    forms._say_once.cache_clear()
    yield
    forms.prefer(None)


def run_both(operator, form, num_tokens, kind, with_state, dtype) -> list[tuple[Tensor, Tensor]]:
    """Return pairs (form, reference): outputs at real tokens, state, and all gradients."""
    torch.manual_seed(num_tokens)
    op, make_inputs, state_name = OPS[operator]
    made, state = make_inputs(2, num_tokens)
    segments_BT = draw_segments(kind, 2, num_tokens)
    real_BT = torch.ones(2, num_tokens) == 1 if segments_BT is None else segments_BT != 0
    results = []
    for name in (form, "reference"):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in made]
        options = {"segments_BT": segments_BT}
        if with_state:
            options[state_name] = state.to(dtype).requires_grad_()
        y, last = op(*leaves, form=name, **options)
        wanted = leaves + ([options[state_name]] if with_state else [])
        loss = y[real_BT].sin().sum() + last.cos().sum()
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        results.append([y[real_BT], last, *(g for g in grads if g is not None)])
    return list(zip(*results, strict=True))


@pytest.mark.parametrize("kind", ["one", "packed", "gaps"])
@pytest.mark.parametrize("num_tokens", [1, 2, 63, 64, 65, 257])
@pytest.mark.parametrize(("operator", "form"), list_other_forms())
def test_every_form_equals_the_reference(operator, form, num_tokens, kind):
    for with_state in (False, True):
        for dtype, allowed in ((torch.float64, FLOAT64), (torch.float32, FLOAT32)):
            for found, wanted in run_both(operator, form, num_tokens, kind, with_state, dtype):
                assert_close(found, wanted, allowed)


@pytest.mark.parametrize(("operator", "form"), [o for o in list_other_forms() if "comp" in o[1]])
def test_gradients_of_compiled_forms_agree_with_finite_differences(operator, form):
    torch.manual_seed(0)
    op, make_inputs, state_name = OPS[operator]
    made, state = make_inputs(1, 5)
    leaves = [tensor.double().requires_grad_() for tensor in [*made, state]]
    segments_BT = torch.tensor([[1, 1, 0, 2, 2]])

    def run(*inputs):
        options = {state_name: inputs[-1], "segments_BT": segments_BT}
        y, last = op(*inputs[:-1], form=form, **options)
        return y[:, segments_BT[0] != 0], last

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize(("operator", "form"), list_other_forms())
def test_the_self_check_finds_the_form_right(operator, form):
    assert measure_error(operator, CPU, form) < 1e-4


@pytest.mark.parametrize("sizes", [(3, 20, 2, 9), (1, 16, 1, 33), (5, 40, 5, 16)])
def test_widths_that_fill_no_vector_are_right(sizes):
    num_heads, num_channels, num_groups, num_states = sizes
    num_heads = num_groups * -(-num_heads // num_groups)
    torch.manual_seed(1)
    x_BTHP, dt_BTH = torch.randn(1, 70, num_heads, num_channels), torch.rand(1, 70, num_heads)
    B_BTGN, C_BTGN = torch.randn(2, 1, 70, num_groups, num_states).unbind()
    inputs = (x_BTHP, dt_BTH, -torch.rand(num_heads), B_BTGN, C_BTGN, None)
    for found, wanted in zip(ssd(*inputs), ssd(*inputs, form="reference"), strict=True):
        assert_close(found, wanted, FLOAT32)


@pytest.mark.parametrize(("operator", "form"), [o for o in list_other_forms() if "comp" in o[1]])
def test_results_do_not_depend_on_the_number_of_threads(operator, form):
    before = torch.get_num_threads()
    found = []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            pairs = run_both(operator, form, 130, "packed", True, torch.float32)
            found.append([pair[0] for pair in pairs])
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_what_is_not_a_number_stays_so():
    x_BTD, weight_DW = torch.ones(1, 3, 2), torch.ones(2, 4)
    x_BTD[0, 1, 0] = torch.nan
    y_BTD, _ = causal_conv(x_BTD, weight_DW, None)
    assert y_BTD[0, :, 0].isnan().tolist() == [False, True, True]
    assert y_BTD[0, :, 1].isfinite().all()


def test_the_first_form_without_an_obstacle_runs_and_the_loss_is_said_once(caplog):
    with caplog.at_level(logging.WARNING, "hybridize.ops"):
        for _ in range(3):
            assert forms.name_choice("toy", TWO, device=CPU, num_tokens=100) == "middle"
    assert [record.getMessage() for record in caplog.records] == [
        "toy runs in form middle, about 6 times slower than form quick, which cannot run here: "
        "cpu is tired"
    ]


def test_few_tokens_take_a_form_that_is_quick_to_begin():
    assert forms.name_choice("toy", TWO, device=CPU, num_tokens=3) == "reference"


def test_arguments_go_before_preferences_and_those_before_speed():
    def chosen(form="auto"):
        known = forms.list_operators()["ssd"]
        return forms.name_choice("ssd", known, form, device=CPU, num_tokens=100)

    forms.prefer("reference")
    assert chosen() == "reference" and chosen("chunked") == "chunked"
    forms.prefer("causal_conv=reference, ssd=chunked")
    assert chosen() == "chunked"
    forms.prefer(None)
    can_compile = forms.list_operators()["ssd"]["compiled"].find_obstacle(CPU) is None
    assert chosen() == ("compiled" if can_compile else "chunked")


@pytest.mark.parametrize("text", ["fastest", "ssd=fastest", "sdd=chunked", "ssd=chunked,ssd=", "="])
def test_a_preference_for_nothing_is_refused(text):
    with pytest.raises(ValueError, match=r"no operator|no form|is no form"):
        forms.prefer(text)


def test_a_form_that_cannot_run_is_refused_with_the_reason():
    with pytest.raises(RuntimeError, match="toy: form quick cannot run here: cpu is tired"):
        forms.choose("toy", TWO, "quick", device=CPU, num_tokens=9)
    assert "quick cannot run: cpu is tired" in forms.explain("toy", TWO, CPU)


def test_meta_tensors_take_a_form_of_plain_torch():
    made, _ = OPS["ssd"][1](2, 70)
    y_BTHP, _ = ssd(*(tensor.to("meta") for tensor in made))
    assert y_BTHP.shape == made[0].shape


def python(code: str, *, home: Path, path: str | None = None) -> "subprocess.Popen[str]":
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if path is not None:
        environment["PATH"] = path
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


CHECK = """
import torch
from hybridize.ops.self_check import measure_error
for _ in range(2):
    print(measure_error("causal_conv", torch.device("cpu")) < 1e-4)
"""


def test_without_a_compiler_another_form_runs_and_says_so_once(tmp_path):
    out, err = python(CHECK, home=tmp_path, path=str(tmp_path)).communicate(timeout=120)
    assert out.split() == ["True", "True"]
    assert err.count("causal_conv runs in form chunked, about 6 times slower") == 1
    assert "no C++ compiler (g++, clang++, c++) is on the PATH" in err


needs_compiler = pytest.mark.skipif(
    native.find_obstacle(Path(native.__file__).parent / "ssd" / "kernel.cpp", CPU) is not None,
    reason="kernels cannot be built here",
)


@needs_compiler
def test_two_processes_build_at_once(tmp_path):
    running = [python(CHECK, home=tmp_path) for _ in range(2)]
    for process in running:
        out, err = process.communicate(timeout=240)
        assert out.split() == ["True", "True"] and "slower" not in err
    built = list((tmp_path / ".cache" / "hybridize").iterdir())
    assert [path.name.startswith("causal_conv-") for path in built] == [True]


@needs_compiler
def test_a_broken_library_or_source_breaks_nothing(tmp_path):
    source = tmp_path / "toy" / "kernel.cpp"
    source.parent.mkdir()
    source.write_text('#include "native.hpp"\nextern "C" void forward_float(const void*) {}\n')
    native.load(source, tmp_path / "cache")
    (built,) = (tmp_path / "cache").iterdir()
    built.unlink()
    built.write_text("not a library")
    assert native.load(source, tmp_path / "cache").forward_float
    source.write_text("no C++ at all\n")
    with pytest.raises(native.BuildError, match="error"):
        native.load(source, tmp_path / "cache")
