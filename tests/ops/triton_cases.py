"""Inputs of the Triton forms, and one comparison of a Triton form with another form."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.close import assert_close
from tests.ops.test_parity import draw_segments

Form = Callable[..., tuple[Tensor, Tensor]]
OPS = ("causal_conv", "selective_scan", "ssd", "gated_delta_rule")
STATES = {
    "causal_conv": "state_BDW",
    "selective_scan": "state_BDN",
    "ssd": "state_BHPN",
    "gated_delta_rule": "state_BHPN",
}
"""Operator -> its argument for the state before the first token."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How many of everything; channels are those of a head."""

    rows: int = 2
    num_tokens: int
    heads: int = 4
    groups: int = 2
    channels: int = 3
    states: int = 5


def load(name: str, form: str) -> Form:
    return getattr(import_module(f"hybridize.ops.{name}.{form}"), f"{name}_{form.split('_')[0]}")


def draw(
    name: str, size: Size, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[list[Tensor], Tensor]:
    """Draw the inputs and a state; decays, steps and the state stay in at least float32."""
    wide = torch.promote_types(dtype, torch.float32)
    made = {"device": device, "dtype": dtype}
    rows, num_tokens, inner = size.rows, size.num_tokens, size.heads * size.channels
    if name == "causal_conv":
        inputs = [torch.randn(rows, num_tokens, inner, **made), torch.randn(inner, 4, **made)]
        inputs += [torch.randn(inner, **made)]
        state = torch.randn(rows, inner, 3, **made)
        return [values.requires_grad_() for values in inputs], state.requires_grad_()
    keys_2BTGN = torch.randn(2, rows, num_tokens, size.groups, size.states, **made)
    if name == "gated_delta_rule":
        rates_2BTH = torch.rand(2, rows, num_tokens, size.heads, device=device, dtype=wide)
        values_BTHP = torch.randn(rows, num_tokens, size.heads, size.channels, **made)
        inputs = [*F.normalize(keys_2BTGN, dim=-1), values_BTHP, -rates_2BTH[0], rates_2BTH[1]]
        state = torch.randn(rows, *values_BTHP.shape[2:], size.states, device=device, dtype=wide)
        return [values.detach().requires_grad_() for values in inputs], state.requires_grad_()
    per_step = inner if name == "selective_scan" else size.heads
    rates = (inner, size.states) if name == "selective_scan" else (size.heads,)
    x_BTD = torch.randn(rows, num_tokens, inner, **made)
    inputs = [
        x_BTD if name == "selective_scan" else x_BTD.unflatten(2, (size.heads, -1)),
        torch.rand(rows, num_tokens, per_step, device=device, dtype=wide),
        -torch.rand(rates, device=device, dtype=wide),
        *keys_2BTGN.unbind(),
        torch.randn(per_step, device=device, dtype=wide),
    ]
    shape = (rows, *inputs[2].shape) if name == "selective_scan" else None
    shape = shape or (rows, size.heads, size.channels, size.states)
    state = torch.randn(shape, device=device, dtype=wide)
    return [values.detach().requires_grad_() for values in inputs], state.requires_grad_()


def weigh(values: Tensor) -> Tensor:
    """Sum with weights that do not depend on how the values were rounded."""
    values = values.flatten().to(torch.promote_types(values.dtype, torch.float32))
    return values @ torch.arange(values.numel(), device=values.device).to(values.dtype).cos()


def run(
    form: Form,
    inputs: list[Tensor],
    segments_BT: Tensor | None,
    state: dict[str, Tensor],
    **options: int,
) -> list[Tensor]:
    """Return outputs at real tokens, the last state, and the gradients of all inputs."""
    y, last = form(*inputs, segments_BT=segments_BT, **state, **options)
    real_BT = torch.ones(y.shape[:2], device=y.device) == 1
    if segments_BT is not None:
        real_BT = segments_BT != 0
    loss = weigh(y[real_BT]) + weigh(last)
    wanted = [*inputs, *state.values()]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    grads = [torch.zeros_like(of) if g is None else g for g, of in zip(grads, wanted, strict=True)]
    return [y[real_BT], last, *grads]


def compare(
    name: str,
    size: Size,
    *,
    kind: str,
    with_state: bool,
    dtype: torch.dtype,
    allowed: float,
    chunk: int | None = None,
    device: torch.device | str = "cpu",
    truth: str = "reference",
) -> None:
    """Compare with another form, which gets the same numbers in at least float32."""
    torch.manual_seed(size.num_tokens)
    inputs, state = draw(name, size, dtype, device)
    segments_BT = draw_segments(kind, size.rows, size.num_tokens)
    if segments_BT is not None:
        segments_BT = segments_BT.to(device)
    options = {} if chunk is None else {"chunk": chunk}
    given = {STATES[name]: state} if with_state else {}
    found = run(load(name, "triton_form"), inputs, segments_BT, given, **options)
    exact = torch.promote_types(dtype, torch.float32)
    inputs = [values.detach().to(exact).requires_grad_() for values in inputs]
    given = {key: values.detach().to(exact).requires_grad_() for key, values in given.items()}
    wanted = run(load(name, truth), inputs, segments_BT, given)
    for one, other in zip(found, wanted, strict=True):
        assert one.isfinite().all()
        assert_close(one, other, allowed)
