"""The gated delta rule (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464, section 3).

Legend: B batch, T tokens, H heads, P channels per value, G groups of heads that share queries and
keys, N channels per key.
"""

from torch import Tensor

from hybridize.ops.forms import Form, choose

FORMS = {
    "triton": Form(
        place="hybridize.ops.gated_delta_rule.triton_form:gated_delta_rule_triton",
        devices=("gpu",),
        obstacle="hybridize.ops.triton_support:find_obstacle",
    ),
    "compiled": Form(
        place="hybridize.ops.gated_delta_rule.compiled:gated_delta_rule_compiled",
        devices=("cpu",),
        obstacle="hybridize.ops.gated_delta_rule.compiled:find_obstacle",
        speedup=2,
    ),
    "chunked": Form(
        place="hybridize.ops.gated_delta_rule.chunked:gated_delta_rule_chunked",
        speedup=10,
        short=4,
    ),
    "reference": Form(place="hybridize.ops.gated_delta_rule.reference:gated_delta_rule_reference"),
}
"""The fastest first."""


def gated_delta_rule(
    q_BTGN: Tensor,
    k_BTGN: Tensor,
    v_BTHP: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    *,
    segments_BT: Tensor | None = None,
    state_BHPN: Tensor | None = None,
    form: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run S' = exp(g) S, S'' = S' + beta (v - S' k) k^T, y = S'' q.

    The state maps keys to values. A token lets it decay, looks up what it holds under the token's
    key, and moves that a share beta of the way to the token's value; with beta 1 and a key of
    length 1 the value is then held exactly.

    Args:
        q_BTGN: queries; any scale is the caller's.
        k_BTGN: keys of length at most 1, or the state may grow; head h reads group h // (H / G)
            of queries and keys.
        v_BTHP: values.
        g_BTH: logarithm of what the state keeps, <= 0, float32.
        beta_BTH: share of the way to the value, 0 to 1, float32.
        segments_BT: document number per token, 0 for padding; None is one document per row.
        state_BHPN: state before the first token; None is zeros.
        form: a name in FORMS, or "auto" for the fastest that can run; see `hybridize.ops.forms`.

    Returns:
        outputs (B, T, H, P) in the dtype of v, finite but meaningless at padding, and the state
        after the last token in float32.
    """
    run = choose("gated_delta_rule", FORMS, form, device=v_BTHP.device, num_tokens=v_BTHP.shape[1])
    return run(
        q_BTGN, k_BTGN, v_BTHP, g_BTH, beta_BTH, segments_BT=segments_BT, state_BHPN=state_BHPN
    )
