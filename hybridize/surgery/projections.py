"""What an attention projects, as expressions: apart or fused, with biases and norms in their place.

A map is written with these, so that it holds for every family. A norm of queries or keys multiplies
each channel by a weight, which is folded into the rows of the projection, and divides the token's
channels by their root mean square, which no row can do: what is projected then has the direction of
the attention's queries and keys, and another length for each token.
"""

from collections.abc import Mapping

from hybridize.models.mixers import MixerShape
from hybridize.surgery.nodes import Copy, Node, Repeat, Shape, Slice, Times

FUSED = "qkv_proj"
"""The projection of families that keep queries, keys and values in one, below each other."""


def take_projection(
    old: str, part: str, tensors: Mapping[str, Shape], shape: MixerShape, kind: str = "weight"
) -> Node:
    """Return the rows of one projection of an attention, as the attention uses them.

    Args:
        old: prefix of the attention in the teacher, such as "model.layers.3.self_attn."
        part: "q_proj", "k_proj" or "v_proj".
        tensors: shapes of all tensors of the teacher.
        shape: the attention's heads.
        kind: "weight", or "bias" where `has_bias`.
    """
    keys, queries = shape.num_kv_heads * shape.head_dim, shape.num_heads * shape.head_dim
    node: Node = Copy(f"{old}{part}.{kind}", "teacher")
    if f"{old}{FUSED}.{kind}" in tensors:
        starts = {"q_proj": 0, "k_proj": queries, "v_proj": queries + keys}
        rows = queries if part == "q_proj" else keys
        node = Slice(Copy(f"{old}{FUSED}.{kind}", "teacher"), starts[part], starts[part] + rows)
    norm = f"{old}{part[0]}_norm.weight"
    if norm not in tensors:
        return node
    factors: Node = Copy(norm, "teacher")
    if tensors[norm][0] == shape.head_dim:  # one norm for all heads, or one over their whole width
        heads = shape.num_heads if part == "q_proj" else shape.num_kv_heads
        factors = repeat(factors, heads, shape.head_dim)
    return Times(node, factors)


def has_bias(old: str, tensors: Mapping[str, Shape]) -> bool:
    """Tell whether the attention adds biases to its queries, keys and values."""
    return f"{old}q_proj.bias" in tensors or f"{old}{FUSED}.bias" in tensors


def repeat(node: Node, times: int, block: int) -> Node:
    """Repeat blocks of rows, or leave an expression alone if once is enough."""
    return node if times == 1 else Repeat(node, times, block)
