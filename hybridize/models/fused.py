"""What training computes of a layer value by value, in one pass over memory where a kernel can.

Legend: B batch, T tokens, D model width, N tokens of all rows, H query heads, G key and value
heads, K head width, L tokens of the longest document.

A layer of a small model waits for memory: a norm of transformers goes over its input six times and
keeps three copies of it for the backward pass. The results are those of the teacher's own modules
to rounding, not bit for bit, so that text without `segments` still runs through the modules.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.activations import SiLUActivation
from transformers.models.granite.modeling_granite import GraniteAttention
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from hybridize.models.documents import EXACT, attending_apart
from hybridize.models.mixers import MixerContext
from hybridize.ops import gated_norm, gated_unit, packed_attention

PLAIN_ATTENTION = (GraniteAttention, LlamaAttention, MistralAttention, Qwen2Attention)
"""Four projections, and ropes for all channels of queries and keys: nothing else."""


def fused_norm(norm: Any, hidden_BTD: Tensor) -> Tensor:
    """Apply an RMS norm of transformers."""
    return gated_norm(hidden_BTD, None, norm.weight, num_groups=1, eps=norm.variance_epsilon)


def fused_mlp(mlp: Any, hidden_BTD: Tensor) -> Tensor:
    """Apply an MLP of transformers; one of another form than SwiGLU runs as it is."""
    made_BTD: Tensor
    if not hasattr(mlp, "gate_proj") or not isinstance(mlp.act_fn, SiLUActivation):
        made_BTD = mlp(hidden_BTD)
        return made_BTD
    gate_BTF, up_BTF = mlp.gate_proj(hidden_BTD), mlp.up_proj(hidden_BTD)
    if gate_BTF.dtype == torch.float32:
        made_BTD = mlp.down_proj(gated_unit(gate_BTF, up_BTF))
    else:
        made_BTD = mlp.down_proj(mlp.act_fn(gate_BTF) * up_BTF)
    return made_BTD


def attend_packed(attention: Any, hidden_BTD: Tensor, ctx: MixerContext) -> Tensor:
    """Apply an attention of transformers to each document of packed rows."""
    made_BTD: Tensor
    if not _can_fuse(attention, hidden_BTD, ctx):
        with attending_apart(attention.config):
            made_BTD, *_ = attention(
                hidden_states=hidden_BTD,
                position_embeddings=ctx.rope,
                attention_mask=None,
                documents=ctx.documents,
            )
        return made_BTD
    assert ctx.documents is not None
    q_NHK, k_NGK, v_NGK = (
        projection(hidden_BTD).flatten(0, 1).unflatten(-1, (-1, attention.head_dim))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    cos_1LK, sin_1LK = ctx.documents.rope
    mixed_NHK = packed_attention(
        *(q_NHK, k_NGK, v_NGK, ctx.documents.groups),
        scale=attention.scaling,
        rope=(cos_1LK[0], sin_1LK[0]),
    )
    made_BTD = attention.o_proj(mixed_NHK.view(*hidden_BTD.shape[:2], -1))
    return made_BTD


def _can_fuse(attention: Any, hidden_BTD: Tensor, ctx: MixerContext) -> bool:
    return (
        ctx.fused
        and type(attention) in PLAIN_ATTENTION
        and hidden_BTD.dtype in EXACT
        and not torch.is_autocast_enabled(hidden_BTD.device.type)
        and not (attention.training and attention.attention_dropout)
        and not torch.compiler.is_compiling()
    )
