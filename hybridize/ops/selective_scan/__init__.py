"""Selective scan, the recurrence of Mamba (Gu and Dao 2023, arXiv 2312.00752, section 3).

Legend: B batch, T tokens, D channels, G groups of channels that share B and C, N state size per
channel.
"""

from torch import Tensor

from hybridize.ops.forms import Form, choose

FORMS = {
    "triton": Form(
        place="hybridize.ops.selective_scan.triton_form:selective_scan_triton",
        devices=("gpu",),
        obstacle="hybridize.ops.triton_support:find_obstacle",
    ),
    "compiled": Form(
        place="hybridize.ops.selective_scan.compiled:selective_scan_compiled",
        devices=("cpu",),
        obstacle="hybridize.ops.selective_scan.compiled:find_obstacle",
        speedup=7,
    ),
    "chunked": Form(
        place="hybridize.ops.selective_scan.chunked:selective_scan_chunked", speedup=10, short=16
    ),
    "reference": Form(place="hybridize.ops.selective_scan.reference:selective_scan_reference"),
}
"""The fastest first."""


def selective_scan(  # noqa: PLR0913  the recurrence has this many inputs
    x_BTD: Tensor,
    dt_BTD: Tensor,
    A_DN: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_D: Tensor | None,
    *,
    segments_BT: Tensor | None = None,
    state_BDN: Tensor | None = None,
    form: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run h' = exp(dt A) h + dt x B, y = C h' + D x, with one decay per channel and state.

    Args:
        x_BTD: values; channel d reads group d // (D / G) of B and C.
        dt_BTD: step sizes, >= 0, float32 (bfloat16 rounds the small ones to nothing).
        A_DN: decay rates per unit of dt, < 0, float32.
        B_BTGN: where a token writes (a key).
        C_BTGN: what a token reads (a query).
        D_D: weight of the token's own value; None leaves it out.
        segments_BT: document number per token, 0 for padding; None is one document per row.
        state_BDN: state before the first token; None is zeros.
        form: a name in FORMS, or "auto" for the fastest that can run; see `hybridize.ops.forms`.

    Returns: outputs (B, T, D) in the dtype of x, finite but meaningless at padding, and the state
        after the last token in float32.
    """
    run = choose("selective_scan", FORMS, form, device=x_BTD.device, num_tokens=x_BTD.shape[1])
    return run(
        x_BTD, dt_BTD, A_DN, B_BTGN, C_BTGN, D_D, segments_BT=segments_BT, state_BDN=state_BDN
    )
