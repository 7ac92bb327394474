"""HybridForCausalLM in vLLM: the layers of any family with the mixer that the layout says.

Legend: T tokens of all requests side by side, D model width, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateCopyFuncCalculator
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid
from vllm.model_executor.models.llama import LlamaMLP
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.v1.kv_cache_interface import MambaSpec

from hybridize.vllm_plugin.attention import SelfAttention
from hybridize.vllm_plugin.gated_delta import GatedDelta
from hybridize.vllm_plugin.mamba1 import Mamba1
from hybridize.vllm_plugin.mamba2 import EngineMamba2, make_mamba2
from hybridize.vllm_plugin.sliding import Sliding

MIXERS: dict[str, Callable[[Any, int, str], nn.Module]] = {
    "attention": SelfAttention,
    "gated_delta": GatedDelta,
    "mamba1": Mamba1,
    "mamba2": make_mamba2,
    "sliding": Sliding,
}
"""Kind -> what makes it of (vllm_config, layer, prefix); "identity" needs none."""
POST_NORM = ("olmo2",)
"""Families whose norms are behind mixer and MLP."""
STACKED = {
    ".q_proj.": (".qkv_proj.", "q"),
    ".k_proj.": (".qkv_proj.", "k"),
    ".v_proj.": (".qkv_proj.", "v"),
    ".gate_proj.": (".gate_up_proj.", 0),
    ".up_proj.": (".gate_up_proj.", 1),
}
"""Tensors of a file that are rows of one of vLLM's."""


class HybridLayer(nn.Module):
    """One residual layer: a mixer and an MLP, with the norms and the scale of the family."""

    def __init__(self, vllm_config: Any, layer: int, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        kind = config.mixers[layer]
        self.place = "self_attn" if kind == "attention" else "mixer"
        if kind != "identity":
            mixer = MIXERS[kind](vllm_config, layer, f"{prefix}.{self.place}")
            self.add_module(self.place, mixer)
        self.mlp = LlamaMLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            quant_config=vllm_config.quant_config,
            bias=config.mlp_bias,
            prefix=f"{prefix}.mlp",
        )
        self.is_post_norm = config.family in POST_NORM
        first, second = "input_layernorm", "post_attention_layernorm"
        if self.is_post_norm:
            first, second = second, "post_feedforward_layernorm"
        self.norms = (first, second)
        for name in self.norms:
            self.add_module(name, RMSNorm(config.hidden_size, eps=config.rms_norm_eps))
        self.scale = getattr(config, "residual_multiplier", None) or 1.0

    def forward(self, positions_T: Tensor, hidden_TD: Tensor) -> Tensor:
        """Return the residual stream after this layer, (T, D)."""
        first, second = (getattr(self, name) for name in self.norms)
        if hasattr(self, self.place):
            mix = getattr(self, self.place)
            if self.is_post_norm:
                made_TD = first(mix(positions_T, hidden_TD))
            else:
                made_TD = mix(positions_T, first(hidden_TD))
            hidden_TD = hidden_TD + self.scale * made_TD
        made_TD = second(self.mlp(hidden_TD)) if self.is_post_norm else self.mlp(second(hidden_TD))
        return hidden_TD + self.scale * made_TD


@support_torch_compile(
    dynamic_arg_dims={"input_ids": 0, "positions": 0, "intermediate_tensors": 0, "inputs_embeds": 0}
)
class HybridModel(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            HybridLayer(vllm_config, layer, f"{prefix}.layers.{layer}")
            for layer in range(len(config.mixers))
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.left_out = frozenset(config.left_out)
        self.scale = getattr(config, "embedding_multiplier", None) or 1.0

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Return the final normed states (T, D)."""
        hidden_TD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        hidden_TD = hidden_TD if self.scale == 1 else hidden_TD * self.scale
        for number, layer in enumerate(self.layers):
            if number not in self.left_out:
                hidden_TD = layer(positions, hidden_TD)
        return self.norm(hidden_TD)


class HybridForCausalLM(nn.Module, HasInnerState, IsHybrid):
    """What vLLM's registry finds under the name of our architecture."""

    packed_modules_mapping = {  # noqa: RUF012
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.config = config = vllm_config.model_config.hf_config
        start = f"{prefix}." if prefix else ""
        self.model = HybridModel(vllm_config=vllm_config, prefix=f"{start}model")
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            quant_config=vllm_config.quant_config,
            prefix=f"{start}lm_head",
        )
        if config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        divisor = getattr(config, "logits_scaling", None) or 1.0
        self.logits_processor = LogitsProcessor(config.vocab_size, scale=1 / divisor)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Return the embedded tokens (T, D)."""
        return self.model.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the final normed states (T, D)."""
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return the logits (T, V) of the next token."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the tensors of a folder; return the names that were found."""
        loader = AutoWeightsLoader(self)
        mapper = WeightsMapper(orig_to_new_stacked=STACKED)
        loaded = loader.load_weights(self._rename(weights), mapper=mapper)
        untouched = tuple(f"model.layers.{layer}." for layer in self.config.left_out)
        if untouched:
            names = (name for name, _ in self.named_parameters())
            loaded |= {name for name in names if name.startswith(untouched)}
        return loaded

    def _rename(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Give tensors the names they have here; cut in two what an older form keeps as one."""
        for name, tensor in weights:
            parts = name.split(".")
            if parts[:2] != ["model", "layers"]:
                yield name, tensor
                continue
            layer, rest = int(parts[2]), ".".join(parts[3:])
            kind = self.config.mixers[layer]
            if layer in self.config.left_out:
                continue
            if rest == "mixer.A_log" and isinstance(self.model.layers[layer].mixer, EngineMamba2):
                yield name.replace("A_log", "A"), tensor
            elif kind == "mamba1" and rest.startswith("mixer.in_proj."):
                mixer: Any = self.model.layers[layer].mixer
                rows = 2 * (mixer.sizes.all_inner + mixer.sizes.all_shared)
                yield name, tensor[:rows]
                if len(tensor) > rows:
                    yield name.replace(".in_proj.", ".dt_in_proj."), tensor[rows:]
            else:
                yield name, tensor

    @classmethod
    def get_mamba_specs_from_config(cls, vllm_config: Any) -> list[MambaSpec]:
        """Return what each state layer that was built keeps per request."""
        layers = vllm_config.compilation_config.static_forward_context.values()
        return [
            MambaSpec(
                shapes=tuple(layer.get_state_shape()),
                dtypes=tuple(layer.get_state_dtype()),
                block_size=-1,
            )
            for layer in layers
            if isinstance(layer, MambaBase)
        ]

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: Any) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the first state layer; see `get_mamba_specs_from_config`."""
        specs = cls.get_mamba_specs_from_config(vllm_config)
        return specs[0].shapes if specs else ()

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: Any) -> tuple[torch.dtype, ...]:
        """Return the dtypes of the first state layer; see `get_mamba_specs_from_config`."""
        specs = cls.get_mamba_specs_from_config(vllm_config)
        return specs[0].dtypes if specs else ()

    @classmethod
    def get_mamba_state_copy_func(cls) -> tuple[Any, ...]:
        """Return how states are copied for prefix caching, which is off; vLLM asks all the same."""
        return MambaStateCopyFuncCalculator.mamba2_state_copy_func()
