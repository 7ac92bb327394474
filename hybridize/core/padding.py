"""Zero heads: how many to add so that heads fill the hidden size exactly, as some engines assume.

A query head whose rows are zero attends evenly and adds nothing where its columns of the output
projection are zero too; so does a key-value head of zeros, and a Mamba head with a group of its
own. The function stays the same, bit for bit but for the order of sums.
"""

from dataclasses import dataclass

from hybridize.core.shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Heads of the attention that is written."""

    num_heads: int
    """Query heads; hidden size / head width."""
    num_kv_heads: int
    added_heads: int
    """Zero query heads among them."""
    per_group: int
    """Query heads to a key-value head."""


def plan_heads(shape: ModelShape) -> Heads | None:
    """Return the heads to write so that they fill the hidden size; None where none would.

    Of the exact ways, the one with the fewest key-value heads is taken, since their cache grows
    with the text: first zero query heads beside those of each group, then zero groups.
    """
    if shape.hidden_size % shape.head_dim or shape.num_heads % shape.num_kv_heads:
        return None
    wanted = shape.hidden_size // shape.head_dim
    least = shape.num_heads // shape.num_kv_heads
    for num_kv_heads in range(shape.num_kv_heads, wanted + 1):
        per_group, rest = divmod(wanted, num_kv_heads)
        if rest == 0 and per_group >= least:
            return Heads(
                num_heads=wanted,
                num_kv_heads=num_kv_heads,
                added_heads=wanted - shape.num_heads,
                per_group=per_group,
            )
    return None
