"""Say in sentences which layers are not like the others, and in what."""

from collections.abc import Sequence
from statistics import median

from hybridize.evaluation.diagnosis import LayerReport

FAINT = 0.05
"""A mixer that adds less than this share of what the median mixer adds hardly works."""
IDLE_NATS = 1e-4
"""A mixer without which the loss gains less than this is not needed, or does not work."""
FAR = 3.0
"""A mixer this many times as far from the teacher as the median one stands out."""
FEW = 3
"""With fewer converted layers than this, they are not compared with each other."""
FULL = 0.9
"""A state of more than this share of the highest effective rank is full."""


def find_faults(reports: Sequence[LayerReport]) -> list[str]:
    """List what stands out, the surest first; each sentence names its layer."""
    converted = [one for one in reports if one.mixer not in ("attention", "identity")]
    found = [
        f"{_name(one)}: {tensor} is all zeros." for one in converted for tensor in one.zero_tensors
    ]
    found += _faint(converted)
    found += _far(converted)
    for one in converted:
        if one.contribution_nats is not None and one.contribution_nats < IDLE_NATS:
            found.append(
                f"{_name(one)}: without its mixer the loss changes by {one.contribution_nats:+.5f} "
                "nats per token: it adds nothing that the model needs."
            )
        if one.memory is not None and one.memory.state_rank > FULL:
            found.append(
                f"{_name(one)}: its state has {one.memory.state_rank:.2f} of the highest effective "
                "rank: it is full, and what it takes in overwrites."
            )
    return found


def _faint(converted: Sequence[LayerReport]) -> list[str]:
    found = []
    for one in converted:
        others = [other.output_share for other in converted if other is not one]
        usual = median(others) if len(converted) >= FEW else None
        if one.output_share == 0 or (usual and one.output_share < FAINT * usual):
            beside = f", the median of the others {usual:.3f}" if usual else ""
            found.append(
                f"{_name(one)}: its mixer adds {one.output_share:.2g} of the size of the residual "
                f"stream{beside}: it hardly works."
            )
    return found


def _far(converted: Sequence[LayerReport]) -> list[str]:
    found = []
    for one in converted:
        others = [o.own_error for o in converted if o is not one and o.own_error is not None]
        if one.own_error is None or len(others) < FEW - 1:
            continue
        usual = median(others)
        if usual > 0 and one.own_error > FAR * usual:
            found.append(
                f"{_name(one)}: fed the teacher's hidden states, its mixer is {one.own_error:.2f} "
                f"away from the attention it replaces, the median of the others {usual:.2f}."
            )
    return found


def _name(one: LayerReport) -> str:
    return f"layer {one.layer} ({one.mixer})"
