"""Attention of any family: projections, norms and rotary positions around vLLM's paged attention.

Legend: T tokens of all requests side by side, D model width, Q values of queries, K of keys or of
values, on this rank.
"""

from typing import Any

from torch import Tensor, nn
from vllm.distributed import divide, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.rotary_embedding import get_rope

from hybridize.core.errors import ModelError


class Heads(nn.Module):
    """What stands before and behind the attention proper: see `project` and `o_proj`."""

    def __init__(self, config: Any, layer: int, quant_config: Any, prefix: str) -> None:
        super().__init__()
        ranks = get_tensor_model_parallel_world_size()
        self.head_dim = config.head_dim
        self.num_heads = divide(config.num_attention_heads, ranks)
        self.num_kv_heads = max(1, config.num_key_value_heads // ranks)
        self.scale = getattr(config, "attention_multiplier", None) or self.head_dim**-0.5
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            self.head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=config.qkv_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * self.head_dim,
            config.hidden_size,
            bias=config.o_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.o_proj",
        )
        self.norm_width = self.head_dim
        if config.qk_norm == "all heads":
            if ranks > 1:
                raise ModelError("norms over all heads are not served with tensor parallelism.")
            self.norm_width = 0  # the whole of the queries, or of the keys
        if config.qk_norm:
            widths = (self.num_heads, self.num_kv_heads)
            query, key = (self.norm_width or heads * self.head_dim for heads in widths)
            self.q_norm = RMSNorm(query, eps=config.rms_norm_eps)
            self.k_norm = RMSNorm(key, eps=config.rms_norm_eps)
        with_rope = getattr(config, "no_rope_layers", None)
        self.rotary_emb = None
        if not with_rope or with_rope[layer]:
            self.rotary_emb = get_rope(
                self.head_dim,
                max_position=config.max_position_embeddings,
                rope_parameters=config.rope_parameters,
            )

    def project(self, positions_T: Tensor, hidden_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (T, Q), keys and values (T, K each), turned by their positions."""
        kv_size = self.num_kv_heads * self.head_dim
        sizes = [self.num_heads * self.head_dim, kv_size, kv_size]
        q_TQ, k_TK, v_TK = self.qkv_proj(hidden_TD)[0].split(sizes, dim=-1)
        if hasattr(self, "q_norm"):
            q_TQ, k_TK = self._normalize(self.q_norm, q_TQ), self._normalize(self.k_norm, k_TK)
        if self.rotary_emb is not None:
            q_TQ, k_TK = self.rotary_emb(positions_T, q_TQ, k_TK)
        return q_TQ, k_TK, v_TK

    def _normalize(self, norm: nn.Module, values_TQ: Tensor) -> Tensor:
        if not self.norm_width:
            return norm(values_TQ.contiguous())
        heads_THK = values_TQ.reshape(len(values_TQ), -1, self.norm_width)
        return norm(heads_THK).view(values_TQ.shape)


class SelfAttention(Heads):
    """Attention with paged keys and values, over all tokens or a window of them."""

    def __init__(self, vllm_config: Any, layer: int, prefix: str) -> None:
        config, quant_config = vllm_config.model_config.hf_config, vllm_config.quant_config
        super().__init__(config, layer, quant_config, prefix)
        self.attn = Attention(
            self.num_heads,
            self.head_dim,
            self.scale,
            num_kv_heads=self.num_kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=quant_config,
            per_layer_sliding_window=config.window_of_layer[layer],
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions_T: Tensor, hidden_TD: Tensor) -> Tensor:
        """Mix the tokens of each request, (T, D)."""
        return self.o_proj(self.attn(*self.project(positions_T, hidden_TD)))[0]
