"""Triton kernels on a CPU, run by test_triton.py in a process with TRITON_INTERPRET=1."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import ScanOps, interpreter_builder

from hybridize.ops import causal_conv, gated_delta_rule, selective_scan, ssd
from tests.ops.triton_cases import OPS, STATES, Size, compare, draw, load, run

FLOAT32, FLOAT64, BFLOAT16 = 1e-4, 1e-9, 1e-2
CHUNKS = {"causal_conv": 16, "selective_scan": 8, "ssd": 16, "gated_delta_rule": 16}
"""Short enough that 65 tokens cross several."""


@pytest.fixture(autouse=True, scope="module")
def hasten_the_interpreter():
    """Scan a slice at a time instead of number by number, and leave out checks for overflow."""

    def scan(self, inputs):
        columns = [np.moveaxis(values.handle.data, self.axis, 0) for values in inputs]
        results = [np.empty_like(column) for column in columns]
        total = None
        for i in range(columns[0].shape[0]):
            own = tuple(
                self.to_tensor(np.ascontiguousarray(column[i]), values.dtype)
                for column, values in zip(columns, inputs, strict=True)
            )
            total = own if total is None else self.combine_fn.fn(*total, *own)
            for result, values in zip(results, total, strict=True):
                result[i] = values.handle.data
        return [
            self.to_tensor(np.moveaxis(result, 0, self.axis), values.dtype)
            for result, values in zip(results, inputs, strict=True)
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScanOps, "generic_scan", scan)
        unchecked = replace(interpreter_builder.options, sanitize_overflow=False)
        patch.setattr(interpreter_builder, "options", unchecked)
        yield


@pytest.mark.parametrize(
    ("num_tokens", "kind", "with_state"),
    [
        (1, "one", False),
        (2, "packed", False),
        (17, "gaps", True),
        (65, "packed", False),
    ],
)
@pytest.mark.parametrize("name", OPS)
def test_triton_equals_reference(name, num_tokens, kind, with_state):
    compare(
        name,
        Size(rows=2 if num_tokens < 17 else 1, num_tokens=num_tokens),
        kind=kind,
        with_state=with_state,
        dtype=torch.float32,
        allowed=FLOAT32,
        chunk=CHUNKS[name],
    )


@pytest.mark.parametrize("name", OPS)
def test_triton_equals_reference_in_float64(name):
    size = Size(rows=1, num_tokens=17)
    compare(
        name, size, kind="gaps", with_state=True, dtype=torch.float64, allowed=FLOAT64, chunk=16
    )


@pytest.mark.parametrize("name", OPS)
def test_bfloat16_is_summed_in_float32(name):
    size = Size(rows=1, num_tokens=17)
    compare(
        name, size, kind="packed", with_state=True, dtype=torch.bfloat16, allowed=BFLOAT16, chunk=16
    )


@pytest.mark.parametrize("name", OPS)
def test_heads_wider_than_a_block(name):
    size = Size(rows=1, num_tokens=17, heads=2, groups=1, channels=40, states=40)
    if name == "selective_scan":
        size = Size(rows=1, num_tokens=9, heads=2, groups=2, channels=20, states=3)
    compare(name, size, kind="one", with_state=True, dtype=torch.float32, allowed=FLOAT32)


@pytest.mark.parametrize("name", OPS)
def test_padding_holds_nothing_that_matters(name):
    """What stands at padding is not a number, and nothing that is real notices."""
    inputs, state = draw(name, Size(rows=1, num_tokens=6), torch.float32)
    segments_BT = torch.tensor([[0, 1, 1, 0, 2, 0]])
    for values in inputs:
        if values.ndim > 2:
            values.data[segments_BT == 0] = 0 if name != "causal_conv" else torch.nan
    given = {STATES[name]: state}
    for values in run(load(name, "triton_form"), inputs, segments_BT, given, chunk=16):
        assert values.isfinite().all()


@pytest.mark.parametrize("name", OPS)
def test_a_row_of_padding_alone_keeps_its_state(name):
    inputs, state = draw(name, Size(rows=1, num_tokens=3), torch.float32)
    segments_BT = torch.zeros(1, 3, dtype=torch.long)
    y, last = load(name, "triton_form")(
        *inputs, segments_BT=segments_BT, **{STATES[name]: state}, chunk=16
    )
    assert y.isfinite().all()
    assert torch.equal(last, state)


@pytest.mark.parametrize("op", [causal_conv, selective_scan, ssd, gated_delta_rule], ids=OPS)
def test_triton_is_taken_when_asked_for(op):
    name = op.__name__
    inputs, _ = draw(name, Size(rows=1, num_tokens=2), torch.float32)
    y, _ = op(*inputs, form="triton")
    assert torch.equal(y, load(name, "triton_form")(*inputs)[0])
