"""The weight map of each mixer: V becomes x, K becomes B, Q becomes C, O projects the output.

Attention without its softmax is a state-space model with the values as inputs, the keys as the
input matrix and the queries as the output matrix (Wang et al. 2024, "The Mamba in the Llama", arXiv
2408.15237, section 2).
"""

from collections.abc import Callable, Mapping

from hybridize.core.errors import ModelError
from hybridize.models.mixers import Mixer
from hybridize.models.mixers.gated_delta import GatedDelta
from hybridize.models.mixers.mamba1 import Mamba1
from hybridize.models.mixers.mamba2 import Mamba2
from hybridize.models.mixers.sliding import Sliding
from hybridize.surgery.nodes import (
    Concat,
    Copy,
    Init,
    Node,
    Repeat,
    RowSum,
    Scale,
    Shape,
    Slice,
    Times,
)
from hybridize.surgery.projections import has_bias, repeat, take_projection

PRINCIPLE = "values become x, keys B, queries C"
INITS = ("from_attention", "random", "aligned")
Entries = dict[str, Node]
"""Full name of a student tensor -> expression."""


def map_mixer(
    mixer: Mixer, old: str, new: str, tensors: Mapping[str, Shape], init: str
) -> tuple[Entries, dict[str, str]]:
    """Map one attention into one mixer.

    Args:
        mixer: a mixer of the kind, for its sizes and names; its values are not read.
        old: prefix of the attention in the teacher, such as "model.layers.3.self_attn."
        new: prefix of the mixer in the student.
        tensors: shapes of all tensors of the teacher.
        init: "from_attention", "random", or "aligned" for one trained before.

    Returns:
        the expressions, and the attention's tensors that are not used with the reason.

    Raises:
        ModelError: the init is not known, or the mixer has no map from attention.
    """
    if init not in INITS:
        raise ModelError(f"init {init!r} does not exist; use {', '.join(INITS)}.")
    entries: Entries = {f"{new}{name}": Init(f"{new}{name}") for name in mixer.state_dict()}
    if init == "from_attention" and entries:
        if type(mixer) not in MAPS:
            kind = type(mixer).__name__
            raise ModelError(f"mixer {kind} has no map from attention; use init: random.")
        entries |= MAPS[type(mixer)](mixer, old, new, tensors)
    if init == "aligned":
        entries = {name: Copy(name, "aligned") for name in entries}
    used = {leaf for node in entries.values() for leaf in _list_copies(node)}
    reasons = {
        f"teacher:{name}": _explain(name, init)
        for name in tensors
        if name.startswith(old) and name not in used
    }
    return entries, reasons


def _list_copies(node: Node) -> list[str]:
    own = [node.name] if isinstance(node, Copy) else []
    return own + [name for part in node.parts() for name in _list_copies(part)]


def _explain(name: str, init: str) -> str:
    if init == "random":
        return "the mixer is drawn at random"
    if "norm" in name:
        return "the mixer has no norm of queries and keys"
    if name.endswith("bias"):
        return "the mixer adds no bias there"
    return "the mixer has no place for it"


def _map_mamba2(mixer: Mamba2, old: str, new: str, tensors: Mapping[str, Shape]) -> Entries:
    """Repeat keys and values over the query heads that share them, and queries not at all.

    Biases of q, k and v move into the bias of the convolution, which passes its input through at
    the start, so they act exactly as before. There is no place for a bias of the output.
    """
    shape = mixer.shape
    if mixer.state_size != shape.head_dim:
        raise ModelError(
            f"mixer mamba2: keys of {shape.head_dim} channels cannot fill a state_size of "
            f"{mixer.state_size}. Leave state_size out, or use init: random."
        )
    key_share = shape.num_heads // shape.num_kv_heads
    heads_per_group = mixer.num_heads // mixer.num_groups
    value_share = key_share * heads_per_group

    def take(kind: str, part: str, times: int) -> Node:
        rows = take_projection(old, part, tensors, shape, kind)
        return repeat(rows, times, shape.head_dim)

    drawn = Init(f"{new}in_proj.weight")
    rows = mixer.in_proj.out_features
    entries: Entries = {
        f"{new}in_proj.weight": Concat(
            (
                Slice(drawn, 0, mixer.inner_size),
                take("weight", "v_proj", value_share),
                take("weight", "k_proj", key_share),
                take("weight", "q_proj", 1),
                Slice(drawn, rows - mixer.num_heads, rows),
            )
        ),
        f"{new}out_proj.weight": _share_output(old, heads_per_group, shape.head_dim),
    }
    if has_bias(old, tensors):
        biases = (take("bias", "v_proj", value_share), take("bias", "k_proj", key_share))
        entries[f"{new}conv1d.bias"] = Concat((*biases, take("bias", "q_proj", 1)))
    return entries


def _map_mamba1(mixer: Mamba1, old: str, new: str, tensors: Mapping[str, Shape]) -> Entries:
    """Keep keys and values at their own width: the mixer repeats activations, not weights.

    Biases of q, k, v and the output are kept as they are where the mixer has `linear_bias`. Else
    the bias of v becomes what the taps of the convolution make of it, which is exact from a
    document's token conv_width - 1 on, and there is no place for the others.
    """
    shape = mixer.shape
    parts = ("v_proj", "k_proj", "q_proj")

    def take(kind: str) -> Node:
        gate = Slice(Init(f"{new}in_proj.{kind}"), 0, mixer.inner_size)
        return Concat((gate, *(take_projection(old, part, tensors, shape, kind) for part in parts)))

    entries: Entries = {
        f"{new}in_proj.weight": take("weight"),
        f"{new}out_proj.weight": Copy(f"{old}o_proj.weight", "teacher"),
    }
    if mixer.in_proj.bias is not None:
        if has_bias(old, tensors):
            entries[f"{new}in_proj.bias"] = take("bias")
        if f"{old}o_proj.bias" in tensors:
            entries[f"{new}out_proj.bias"] = Copy(f"{old}o_proj.bias", "teacher")
    elif has_bias(old, tensors) and mixer.conv1d.bias is not None:
        block = mixer.state_size if mixer.repeat == "state" else shape.head_dim
        bias = take_projection(old, "v_proj", tensors, shape, "bias")
        shared = repeat(bias, shape.num_heads // shape.num_kv_heads, block)
        entries[f"{new}conv1d.bias"] = Times(shared, RowSum(Init(f"{new}conv1d.weight")))
    return entries


def _map_gated_delta(
    mixer: GatedDelta, old: str, new: str, tensors: Mapping[str, Shape]
) -> Entries:
    """Repeat keys and values over the query heads that share them, and queries not at all.

    The mixer gives queries and keys length 1 itself, so of a norm of queries and keys only the
    weights are left, which are folded into the rows. Biases of q, k and v become what the taps of
    the convolution make of them, if it has a bias. There is no place for a bias of the output.
    """
    shape = mixer.shape
    key_share = shape.num_heads // shape.num_kv_heads
    expand = mixer.num_heads // mixer.num_groups
    shares = {"q_proj": 1, "k_proj": key_share, "v_proj": key_share * expand}

    def take(kind: str) -> Node:
        parts = {part: take_projection(old, part, tensors, shape, kind) for part in shares}
        return Concat(tuple(repeat(parts[part], shares[part], shape.head_dim) for part in shares))

    entries: Entries = {
        f"{new}in_proj_qkv.weight": take("weight"),
        f"{new}out_proj.weight": _share_output(old, expand, shape.head_dim),
    }
    if has_bias(old, tensors) and mixer.conv1d.bias is not None:
        # Past the taps, which make something else of a bias than 1 times it.
        taps = RowSum(Init(f"{new}conv1d.weight"))
        entries[f"{new}conv1d.bias"] = Times(take("bias"), taps)
    return entries


def _share_output(old: str, times: int, head_dim: int) -> Node:
    """Give each of the heads that add up in the place of one its share of the output."""
    output: Node = Copy(f"{old}o_proj.weight", "teacher")
    return output if times == 1 else Scale(Repeat(output, times, head_dim, dim=1), 1 / times)


def _map_sliding(mixer: Sliding, old: str, new: str, tensors: Mapping[str, Shape]) -> Entries:
    """Copy the attention whole, with whatever biases and norms the family gives it."""
    names = mixer.attention.state_dict()
    return {f"{new}attention.{name}": Copy(f"{old}{name}", "teacher") for name in names}


MAPS: dict[type[Mixer], Callable[..., Entries]] = {
    GatedDelta: _map_gated_delta,
    Mamba1: _map_mamba1,
    Mamba2: _map_mamba2,
    Sliding: _map_sliding,
}
"""Mixer class -> its map; a plugin without one is drawn at random."""
