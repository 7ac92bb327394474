"""Pure tensor functions of the state-space mixers, each with a slow twin that defines it.

Example:
    y_BTHP, state_BHPN = ssd(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, D_H, segments_BT=segments_BT)

Read in this order: `segments` (what a document boundary means), then `reference.py` and
`chunked.py` of `causal_conv`, `ssd` and `selective_scan`. Every function takes `form="auto"` or the
name of a form; `forms` says which one runs.
"""

from hybridize.ops.causal_conv import causal_conv
from hybridize.ops.gated_delta_rule import gated_delta_rule
from hybridize.ops.gated_delta_step import gated_delta_step
from hybridize.ops.gated_norm import gated_norm
from hybridize.ops.gated_unit import gated_unit
from hybridize.ops.mamba1_step import mamba1_step
from hybridize.ops.mamba2_step import mamba2_step
from hybridize.ops.packed_attention import packed_attention
from hybridize.ops.selective_scan import selective_scan
from hybridize.ops.ssd import ssd

__all__ = [
    "causal_conv",
    "gated_delta_rule",
    "gated_delta_step",
    "gated_norm",
    "gated_unit",
    "mamba1_step",
    "mamba2_step",
    "packed_attention",
    "selective_scan",
    "ssd",
]
