"""Triton forms: checked by the interpreter here, compiled without a GPU, and run where one is."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hybridize.ops import ssd
from hybridize.ops.forms import explain
from hybridize.ops.ssd import FORMS
from tests.ops.triton_cases import OPS, Size, compare, draw, load, run

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="the package triton is not installed: pip install 'hybridize[triton]'",
)
needs_gpu = pytest.mark.skipif(
    not torch.accelerator.is_available(), reason="torch finds no GPU on this machine"
)
LARGE = {
    "causal_conv": Size(num_tokens=4096, heads=64, channels=64),
    "selective_scan": Size(num_tokens=2048, heads=32, groups=32, channels=64, states=16),
    "ssd": Size(num_tokens=4096, heads=32, groups=8, channels=64, states=128),
    "gated_delta_rule": Size(num_tokens=4096, heads=32, groups=16, channels=128, states=128),
}
FLOAT32, BFLOAT16 = 1e-4, 1e-2
"""Relative to the PyTorch form in float32, which sums in another order."""


def run_python(*arguments: str, interpret: bool) -> subprocess.CompletedProcess:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@needs_triton
def test_kernels_agree_with_the_reference_under_the_interpreter():
    done = run_python(
        *("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/ops/triton_interpreted.py"),
        interpret=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "passed" in done.stdout


def test_a_machine_without_a_gpu_never_takes_triton_by_itself():
    said = explain("ssd", FORMS, CPU)
    assert not said.startswith("triton")
    assert "triton is for gpu" in said or "triton cannot run" in said


@pytest.mark.skipif(torch.accelerator.is_available(), reason="says why without a GPU")
def test_asking_for_triton_on_a_cpu_says_why_not():
    inputs, _ = draw("ssd", Size(rows=1, num_tokens=2), torch.float32)
    with pytest.raises(RuntimeError, match=r"form triton cannot run here: .*(GPU|not installed)"):
        ssd(*inputs, form="triton")


def test_operators_import_without_triton():
    done = run_python(
        *("-c", "import sys, hybridize.ops; assert 'triton' not in sys.modules"),
        interpret=False,
    )
    assert done.returncode == 0, done.stderr[-500:]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("name", OPS)
def test_kernels_compile_for_a_gpu_that_is_not_there(name):
    done = run_python("tests/ops/triton_compile.py", name, interpret=False)
    assert done.returncode == 0, done.stderr[-2000:]


@needs_triton
@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["one", "packed", "gaps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", OPS)
def test_triton_equals_chunked_at_real_sizes(name, dtype, kind):
    compare(
        name,
        LARGE[name],
        kind=kind,
        with_state=True,
        dtype=dtype,
        allowed=FLOAT32 if dtype == torch.float32 else BFLOAT16,
        device=torch.accelerator.current_accelerator(),
        truth="chunked",
    )


@needs_triton
@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", OPS)
def test_the_same_inputs_give_the_same_bits(name):
    device = torch.accelerator.current_accelerator()
    inputs, _ = draw(name, LARGE[name], torch.bfloat16, device)
    first, second = (run(load(name, "triton_form"), inputs, None, {}) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
