"""Mamba2 in vLLM: the engine's own layer, which computes what `hybridize.models.mixers` defines.

Its parameters have our names but one: it keeps A where files hold A_log, and takes -exp on loading.
"""

from typing import Any

from torch import Tensor
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2


class Mamba2(MambaMixer2):
    """Groups of heads are query heads of the attention that was replaced."""

    def __init__(self, vllm_config: Any, layer: int, prefix: str) -> None:
        config = vllm_config.model_config.hf_config
        options = config.mixer_options.get("mamba2", {})
        num_heads = options.get("expand", 1) * config.num_attention_heads
        super().__init__(
            hidden_size=config.hidden_size,
            ssm_state_size=options.get("state_size") or config.head_dim,
            conv_kernel_size=options.get("conv_width", 4),
            intermediate_size=num_heads * config.head_dim,
            use_conv_bias=True,
            use_bias=False,
            n_groups=config.num_attention_heads,
            num_heads=num_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.rms_norm_eps,
            activation="silu",
            model_config=vllm_config.model_config,
            cache_config=vllm_config.cache_config,
            quant_config=vllm_config.quant_config,
            prefix=prefix,
        )

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        """Mix the tokens of each request; positions are not used."""
        return super().forward(hidden_states)
