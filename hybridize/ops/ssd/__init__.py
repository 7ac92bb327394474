"""State-space duality, the recurrence of Mamba-2 (Dao and Gu 2024, arXiv 2405.21060, section 6).

Legend: B batch, T tokens, H heads, P channels per head, G groups of heads that share B and C, N
state size.
"""

from torch import Tensor

from hybridize.ops.forms import Form, choose

FORMS = {
    "triton": Form(
        place="hybridize.ops.ssd.triton_form:ssd_triton",
        devices=("gpu",),
        obstacle="hybridize.ops.triton_support:find_obstacle",
    ),
    "compiled": Form(
        place="hybridize.ops.ssd.compiled:ssd_compiled",
        devices=("cpu",),
        obstacle="hybridize.ops.ssd.compiled:find_obstacle",
        speedup=3,
    ),
    "chunked": Form(place="hybridize.ops.ssd.chunked:ssd_chunked", speedup=10, short=4),
    "reference": Form(place="hybridize.ops.ssd.reference:ssd_reference"),
}
"""The fastest first."""


def ssd(  # noqa: PLR0913  the recurrence has this many inputs
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor | None,
    *,
    segments_BT: Tensor | None = None,
    state_BHPN: Tensor | None = None,
    form: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run h' = exp(dt A) h + dt x B, y = C h' + D x, with one decay per head.

    Args:
        x_BTHP: values; head h reads group h // (H / G) of B and C.
        dt_BTH: step sizes, >= 0, float32 (bfloat16 rounds the small ones to nothing).
        A_H: decay rates per unit of dt, < 0, float32.
        B_BTGN: where a token writes (a key).
        C_BTGN: what a token reads (a query).
        D_H: weight of the token's own value; None leaves it out.
        segments_BT: document number per token, 0 for padding; None is one document per row.
        state_BHPN: state before the first token; None is zeros.
        form: a name in FORMS, or "auto" for the fastest that can run; see `hybridize.ops.forms`.

    Returns:
        outputs (B, T, H, P) in the dtype of x, finite but meaningless at padding, and the state
        after the last token in float32.
    """
    run = choose("ssd", FORMS, form, device=x_BTHP.device, num_tokens=x_BTHP.shape[1])
    return run(
        x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, D_H, segments_BT=segments_BT, state_BHPN=state_BHPN
    )
