"""A quick comparison of an operator on this machine with the token loop that defines it.

Legend: B batch, T tokens, D channels, H heads, P channels per head, G groups, N state size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridize.ops import forms
from hybridize.ops.packed_attention.documents import DocumentGroups, group_documents

ROWS, TOKENS = 2, 70
ALLOWED = 1e-4
"""Relative error in float32 up to which a form is right; they sum in different orders."""


def measure_error(operator: str, device: torch.device, form: str = "auto") -> float:
    """Return the largest relative error, in values, state and gradients, of a form in float32.

    The inputs are two rows; of operators with a state, rows of three documents and some padding.
    An operator of one token has no gradients, and is given states.

    Raises:
        ValueError, RuntimeError: there is no such form, or it cannot run here.
    """
    known = forms.list_operators()[operator]
    results = []
    for name in (form, "reference"):
        generator = torch.Generator().manual_seed(0)
        leaves = [tensor.to(device).requires_grad_() for tensor in EXAMPLES[operator](generator)]
        options: dict[str, Any] = OPTIONS.get(operator, _mark_documents)(generator)
        moved = {key: _move(value, device) for key, value in options.items()}
        run = forms.choose(operator, known, name, device=device, num_tokens=TOKENS)
        found = run(*leaves, **moved)
        y, *last = found if isinstance(found, tuple) else (found,)
        if "segments_BT" in options:
            y = y[:, :-3]  # the rest is padding, where outputs mean nothing
        loss = y.sin().sum() + sum(state.cos().sum() for state in last)
        grads = torch.autograd.grad(loss, leaves) if loss.requires_grad else ()
        results.append((y, *last, *grads))
    return max(
        ((found - wanted).norm() / wanted.norm()).item()
        for found, wanted in zip(*results, strict=True)
    )


def _causal_conv(generator: torch.Generator) -> list[Tensor]:
    return [_draw(generator, ROWS, TOKENS, 20), _draw(generator, 20, 4), _draw(generator, 20)]


def _selective_scan(generator: torch.Generator) -> list[Tensor]:
    x_BTD, dt_BTD = _draw(generator, ROWS, TOKENS, 24), _draw(generator, ROWS, TOKENS, 24)
    B_BTGN, C_BTGN = _draw(generator, 2, ROWS, TOKENS, 2, 8).unbind()
    rates_DN = -F.softplus(_draw(generator, 24, 8))
    return [x_BTD, F.softplus(dt_BTD), rates_DN, B_BTGN, C_BTGN, _draw(generator, 24)]


def _ssd(generator: torch.Generator) -> list[Tensor]:
    x_BTHP, dt_BTH = _draw(generator, ROWS, TOKENS, 4, 20), _draw(generator, ROWS, TOKENS, 4)
    B_BTGN, C_BTGN = _draw(generator, 2, ROWS, TOKENS, 2, 24).unbind()
    rates_H = -F.softplus(_draw(generator, 4))
    return [x_BTHP, F.softplus(dt_BTH), rates_H, B_BTGN, C_BTGN, _draw(generator, 4)]


def _gated_delta_rule(generator: torch.Generator) -> list[Tensor]:
    q_BTGN, k_BTGN = _draw(generator, 2, ROWS, TOKENS, 2, 24).unbind()
    v_BTHP = _draw(generator, ROWS, TOKENS, 4, 20)
    g_BTH, beta_BTH = _draw(generator, 2, ROWS, TOKENS, 4).unbind()
    return [q_BTGN, F.normalize(k_BTGN, dim=-1), v_BTHP, F.logsigmoid(g_BTH), beta_BTH.sigmoid()]


def _gated_norm(generator: torch.Generator) -> list[Tensor]:
    y_BTE, z_BTE = _draw(generator, 2, ROWS, TOKENS, 40).unbind()
    return [y_BTE, z_BTE, _draw(generator, 40)]


def _gated_unit(generator: torch.Generator) -> list[Tensor]:
    return list(_draw(generator, 2, ROWS, TOKENS, 40).unbind())


def _packed_attention(generator: torch.Generator) -> list[Tensor]:
    return [_draw(generator, ROWS * TOKENS, heads, 20) for heads in (4, 2, 2)]


def _mamba1_step(generator: torch.Generator) -> list[Tensor]:
    projected_BI, dt_BE = _draw(generator, ROWS, 2 * 40 + 2 * 20), _draw(generator, ROWS, 40)
    weight_EK, A_log_EN = _draw(generator, 40, 4), _draw(generator, 40, 5)
    bias_E, dt_bias_E, D_E = _draw(generator, 3, 40).unbind()
    return [projected_BI, dt_BE, weight_EK, bias_E, dt_bias_E, A_log_EN, D_E]


def _mamba2_step(generator: torch.Generator) -> list[Tensor]:
    projected_BI, weight_XK = _draw(generator, ROWS, 80 + 128 + 4), _draw(generator, 128, 4)
    bias_X, norm_E = _draw(generator, 128), _draw(generator, 80)
    dt_bias_H, A_log_H, D_H = _draw(generator, 3, 4).unbind()
    return [projected_BI, weight_XK, bias_X, dt_bias_H, A_log_H, D_H, norm_E]


def _gated_delta_step(generator: torch.Generator) -> list[Tensor]:
    qkv_BX, z_BE = _draw(generator, ROWS, 160), _draw(generator, ROWS, 80)
    b_BH, a_BH = _draw(generator, 2, ROWS, 4).unbind()
    weight_XK, bias_X, norm_P = (_draw(generator, *sizes) for sizes in ((160, 4), (160,), (20,)))
    dt_bias_H, A_log_H = _draw(generator, 2, 4).unbind()
    return [qkv_BX, z_BE, b_BH, a_BH, weight_XK, bias_X, dt_bias_H, A_log_H, norm_P]


def _draw(generator: torch.Generator, *sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=generator)


def _mark_documents(generator: torch.Generator) -> dict[str, Any]:
    segments_BT = (torch.arange(TOKENS) // 27 + 1).repeat(ROWS, 1)
    segments_BT[:, -3:] = 0
    return {"segments_BT": segments_BT}


def _count_groups(generator: torch.Generator) -> dict[str, Any]:
    return {"num_groups": 2, "eps": 1e-5}


def _find_documents(generator: torch.Generator) -> dict[str, Any]:
    documents = group_documents(_mark_documents(generator)["segments_BT"])
    return {"documents": documents, "scale": 0.2, "rope": tuple(_draw(generator, 2, TOKENS, 20))}


def _give_nothing(generator: torch.Generator) -> dict[str, Any]:
    return {}


def _continue_mamba1(generator: torch.Generator) -> dict[str, Any]:
    states = {
        "conv_state_BEW": _draw(generator, ROWS, 40, 3),
        "scan_state_BEN": _draw(generator, ROWS, 40, 5),
    }
    return states | {"block": 10}


def _continue_mamba2(generator: torch.Generator) -> dict[str, Any]:
    states = {
        "conv_state_BXW": _draw(generator, ROWS, 128, 3),
        "ssd_state_BHPN": _draw(generator, ROWS, 4, 20, 12),
    }
    return states | _count_groups(generator)


def _continue_delta(generator: torch.Generator) -> dict[str, Any]:
    states = {
        "conv_state_BXW": _draw(generator, ROWS, 160, 3),
        "delta_state_BHPN": _draw(generator, ROWS, 4, 20, 20),
    }
    return states | {"eps": 1e-5, "length_eps": 1e-6}


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple):
        return tuple(_move(each, device) for each in value)
    return value.to(device) if isinstance(value, Tensor | DocumentGroups) else value


EXAMPLES = {
    "causal_conv": _causal_conv,
    "gated_delta_rule": _gated_delta_rule,
    "gated_delta_step": _gated_delta_step,
    "gated_norm": _gated_norm,
    "gated_unit": _gated_unit,
    "mamba1_step": _mamba1_step,
    "mamba2_step": _mamba2_step,
    "packed_attention": _packed_attention,
    "selective_scan": _selective_scan,
    "ssd": _ssd,
}
"""Operator -> function that draws its inputs without segments and state."""
OPTIONS = {
    "gated_delta_step": _continue_delta,
    "gated_norm": _count_groups,
    "gated_unit": _give_nothing,
    "mamba1_step": _continue_mamba1,
    "mamba2_step": _continue_mamba2,
    "packed_attention": _find_documents,
}
"""Operator -> function that draws its other arguments; of those left out, segments."""
