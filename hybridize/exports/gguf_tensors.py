"""The tensors of a model as llama.cpp names, orders and pads them.

Legend: D model width, H heads, P channels per head, G groups, N state size, E = H P inner width,
X = E + 2 G N convolved channels, I = E + X + H projected values, W convolution width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.mixers.mamba2 import Mamba2

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_MODULES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mixer.in_proj": "ssm_in",
    "mixer.conv1d": "ssm_conv1d",
    "mixer.norm": "ssm_norm",
    "mixer.out_proj": "ssm_out",
}
_PARAMETERS = {"mixer.dt_bias": "ssm_dt.bias", "mixer.A_log": "ssm_a", "mixer.D": "ssm_d"}


@dataclass(frozen=True, kw_only=True)
class MixerSizes:
    """Sizes of the mamba2 layers of a file: those of the student, or those it is padded to."""

    num_heads: int
    head_dim: int
    num_groups: int
    state_size: int
    conv_width: int

    @property
    def inner_size(self) -> int:
        """E."""
        return self.num_heads * self.head_dim

    @property
    def conv_parts(self) -> tuple[int, ...]:
        """Channels of x, B and C, which the convolution spans."""
        return self.inner_size, *(2 * [self.num_groups * self.state_size])

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of the input projection: z, x, B, C, dt."""
        return self.inner_size, *self.conv_parts, self.num_heads


def find_mixer_sizes(network: HybridForCausalLM) -> MixerSizes | None:
    """Return the sizes of the mamba2 layers; None of a model without one."""
    mixer = next((module for module in network.modules() if isinstance(module, Mamba2)), None)
    if mixer is None:
        return None
    return MixerSizes(
        num_heads=mixer.num_heads,
        head_dim=mixer.head_dim,
        num_groups=mixer.num_groups,
        state_size=mixer.state_size,
        conv_width=mixer.conv1d.kernel_size[0],
    )


def list_tensors(
    network: HybridForCausalLM, *, padded: MixerSizes | None, interleaved: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a model by llama.cpp's names, one at a time, in the model's dtypes.

    Args:
        network: with mamba2 layers of one size, if it has any.
        padded: sizes of the mamba2 layers in the file.
        interleaved: whether the engine turns neighbouring channels of a head, (0, 1), (2, 3), ...
            together, where transformers turns the two halves of a head.
    """
    arranged = arrange(network.state_dict(), network, padded=padded, interleaved=interleaved)
    for name, tensor in arranged:
        yield name, -torch.exp(tensor.float()) if name.endswith("ssm_a") else tensor


def arrange(
    tensors: Mapping[str, Tensor],
    network: HybridForCausalLM,
    *,
    padded: MixerSizes | None,
    interleaved: bool,
) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors by llama.cpp's names: numbers in other places, zeros added, none changed.

    Args:
        tensors: some of `network`, by our names; or anything of their shapes.
        network: see `list_tensors`, as the others.
        padded: sizes of the mamba2 layers in the file.
        interleaved: whether neighbouring channels of a head turn together.
    """
    config, sizes = network.config, find_mixer_sizes(network)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in tensors.items():
        if name in _TOP:
            if name != "lm_head.weight" or not config.tie_word_embeddings:
                yield _TOP[name], tensor
            continue
        _, _, layer, inside = name.split(".", 3)
        goal = _translate(inside)
        if interleaved and goal.split(".")[0] in heads:
            tensor = interleave(tensor, heads[goal.split(".")[0]])
        if sizes is not None and padded is not None and goal.startswith("ssm_"):
            tensor = _shape(goal, pad_mixer(goal, tensor, sizes, padded), padded)
        yield f"blk.{layer}.{goal}", tensor


def _translate(name: str) -> str:
    if name in _PARAMETERS:
        return _PARAMETERS[name]
    module, _, kind = name.rpartition(".")
    return f"{_MODULES[module]}.{kind}"


def interleave(rows: Tensor, num_heads: int) -> Tensor:
    """Reorder the rows of each head from two halves to pairs of neighbours.

    Args:
        rows: weight (heads * P, D) or bias (heads * P) of a query or key projection.
        num_heads: heads of that projection.
    """
    halves = rows.unflatten(0, (num_heads, 2, -1))
    return halves.transpose(1, 2).flatten(0, 2)


def pad_sizes(sizes: MixerSizes, inner_size: int) -> MixerSizes | None:
    """Return the sizes with heads and groups of zeros added up to an inner width; None if no
    whole number of groups reaches it."""
    per_group = sizes.num_heads // sizes.num_groups
    groups, rest = divmod(inner_size, sizes.head_dim * per_group)
    if rest or groups < sizes.num_groups:
        return None
    return MixerSizes(
        num_heads=groups * per_group,
        head_dim=sizes.head_dim,
        num_groups=groups,
        state_size=sizes.state_size,
        conv_width=sizes.conv_width,
    )


def pad_mixer(name: str, tensor: Tensor, sizes: MixerSizes, padded: MixerSizes) -> Tensor:
    """Add zero heads in groups of their own, which compute exactly nothing.

    Groups of their own, because the norm of a group that got zero channels would weigh its
    epsilon differently.
    """
    if name == "ssm_in.weight":
        return _pad_parts(tensor, sizes.rows, padded.rows)
    if name.startswith("ssm_conv1d"):
        return _pad_parts(tensor, sizes.conv_parts, padded.conv_parts)
    if name == "ssm_out.weight":
        return _pad_parts(tensor.T, [sizes.inner_size], [padded.inner_size]).T
    if name == "ssm_norm.weight":
        return _pad_parts(tensor, [sizes.inner_size], [padded.inner_size])
    return _pad_parts(tensor, [sizes.num_heads], [padded.num_heads])


def _pad_parts(tensor: Tensor, sizes: Sequence[int], padded: Sequence[int]) -> Tensor:
    """Append zeros to each part of the first dimension, up to its padded size."""
    pieces = []
    for part, size in zip(tensor.split(list(sizes)), padded, strict=True):
        pieces += [part, part.new_zeros(size - len(part), *part.shape[1:])]
    return torch.cat(pieces)


def _shape(name: str, tensor: Tensor, sizes: MixerSizes) -> Tensor:
    """Give a tensor of a mixer the form that llama.cpp reads."""
    if name == "ssm_conv1d.weight":
        return tensor[:, 0]
    if name in ("ssm_a", "ssm_d"):
        return tensor[:, None]
    if name == "ssm_norm.weight":
        return tensor.view(sizes.num_groups, -1)
    return tensor
