"""StateMixer: a layer that keeps a state of constant size per request in vLLM's cache.

Legend: T tokens of all requests side by side, B requests that decode, I inputs and O outputs per
token.

vLLM hands over the tokens of all requests of a step in one row: first those of requests that go on
by one token, then the others, which bring a prompt or a chunk of one. The former are taken together
in one call or, where copying their states would cost more than calls, one at a time. The latter are
taken one request at a time, so that what is computed for a request does not depend on which others
came with it. Projections, where most of the work is, are outside and see all tokens at once.
"""

from collections.abc import Sequence
from typing import Any

import torch
import vllm.model_executor.layers.mamba.mamba_mixer  # noqa: F401  defines the operator used below
from torch import Tensor, nn
from vllm.distributed import divide, get_tensor_model_parallel_rank
from vllm.distributed import get_tensor_model_parallel_world_size as get_num_ranks
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.utils import set_weight_attrs
from vllm.utils.torch_utils import _encode_layer_name
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

States = tuple[Tensor, ...]


class StateMixer(nn.Module, MambaBase):
    """Between the projections of a mixer: inputs of each token, and its state, to outputs.

    Subclasses say what their state is (`get_state_shape`, `get_state_dtype`), how it takes in one
    token of many requests (`step`) and many tokens of one (`scan`).
    """

    steps_in_place = False
    """Whether `step` is called for each request by itself, with its states where they lie."""

    def __init__(self, vllm_config: Any, num_outputs: int, prefix: str) -> None:
        super().__init__()
        self.num_outputs, self.prefix = num_outputs, prefix
        self.cache_dtype = vllm_config.model_config.dtype
        """Of kept inputs of convolutions, and of keys and values."""
        self.kv_cache = (torch.tensor([]), torch.tensor([]))
        layers = vllm_config.compilation_config.static_forward_context
        assert prefix not in layers, f"two layers are named {prefix}"
        layers[prefix] = self

    def step(self, inputs_BI: Tensor, states: States, seen_B: Tensor) -> tuple[Tensor, States]:
        """Take in one token of each request; return outputs (B, O) and the new states.

        Args:
            inputs_BI: what the projections made of the tokens.
            states: of the requests, (B, ...) each; they may be written over.
            seen_B: tokens each request has had before.
        """
        raise NotImplementedError

    def scan(self, inputs_1TI: Tensor, states: States | None, seen: int) -> tuple[Tensor, States]:
        """Take in tokens of one request; return outputs (1, T, O) and the new states, (1, ...)."""
        raise NotImplementedError

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        """Name what tells this layer which requests decode: vLLM's own for Mamba."""
        return MambaAttentionBackendEnum.MAMBA1

    def mix(self, inputs_TI: Tensor) -> Tensor:
        """Return the outputs (T, O); one operator to a compiler, called by the layer's name."""
        output_TO = inputs_TI.new_empty(len(inputs_TI), self.num_outputs)
        torch.ops.vllm.mamba_mixer(inputs_TI, output_TO, _encode_layer_name(self.prefix))
        return output_TO

    def forward_impl(self, hidden_states: Tensor, output: Tensor) -> None:
        """Fill `output` (T, O) from inputs (T, I), and update the states."""
        metadata = get_forward_context().attn_metadata
        metadata = metadata.get(self.prefix) if isinstance(metadata, dict) else None
        if metadata is None:  # vLLM measures memory, without requests
            output.copy_(self.scan(hidden_states[None], None, 0)[0][0])
            return
        num_decoding = metadata.num_decode_tokens
        if num_decoding:
            slots_B = metadata.state_indices_tensor_d[:, 0].long()
            seen_B = metadata.seq_lens[:num_decoding] - 1
            self._step_all(hidden_states[:num_decoding], slots_B, seen_B, output[:num_decoding])
        if metadata.num_prefills:
            stop = num_decoding + metadata.num_prefill_tokens
            self._scan_each(metadata, hidden_states[num_decoding:stop], output[num_decoding:stop])

    def _step_all(
        self, inputs_BI: Tensor, slots_B: Tensor, seen_B: Tensor, output_BO: Tensor
    ) -> None:
        if not self.steps_in_place:
            states = tuple(state[slots_B] for state in self.kv_cache)
            output_BO[:], states = self.step(inputs_BI, states, seen_B)
            for kept, new in zip(self.kv_cache, states, strict=True):
                kept[slots_B] = new.to(kept.dtype)
            return
        for row, slot in enumerate(slots_B.tolist()):
            own = slice(row, row + 1)
            held = tuple(state[slot : slot + 1] for state in self.kv_cache)
            output_BO[own], states = self.step(inputs_BI[own], held, seen_B[own])
            for kept, new in zip(held, states, strict=True):
                if new.data_ptr() != kept.data_ptr():
                    kept.copy_(new)

    def _scan_each(self, metadata: Any, inputs_TI: Tensor, output_TO: Tensor) -> None:
        bounds = metadata.query_start_loc_p.tolist()
        lengths = metadata.seq_lens[metadata.num_decodes :].tolist()
        going_on = metadata.has_initial_states_p.tolist()
        for request, slot in enumerate(metadata.state_indices_tensor_p.tolist()):
            tokens = slice(bounds[request], bounds[request + 1])
            seen = lengths[request] - (tokens.stop - tokens.start)
            states = None
            if going_on[request]:
                states = tuple(state[slot : slot + 1].clone() for state in self.kv_cache)
            made_1TO, states = self.scan(inputs_TI[None, tokens], states, seen)
            output_TO[tokens] = made_1TO[0]
            for kept, new in zip(self.kv_cache, states, strict=True):
                kept[slot] = new[0].to(kept.dtype)


def shard(sizes: Sequence[int], *trailing: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    """Make a parameter of rows in sections, each split over the ranks, with its loader.

    Args:
        sizes: rows of each section, over all ranks.
        trailing: sizes of the other dimensions.
        dtype: None is that of the model.
    """
    num_ranks, rank = get_num_ranks(), get_tensor_model_parallel_rank()
    rows = [divide(size, num_ranks) for size in sizes]

    def load(parameter: Tensor, given: Tensor) -> None:
        if given.shape != (sum(sizes), *trailing):
            raise ValueError(f"a tensor of shape {tuple(given.shape)} is not {sizes}, {trailing}")
        sections = given.split(list(sizes))
        own = [part.split(size)[rank] for part, size in zip(sections, rows, strict=True)]
        parameter.data.copy_(own[0] if len(own) == 1 else torch.cat(own))

    made = nn.Parameter(torch.empty(sum(rows), *trailing, dtype=dtype), requires_grad=False)
    set_weight_attrs(made, {"weight_loader": load})
    return made


class Taps(nn.Module):
    """The parameters of a depthwise convolution, under the names of torch's own."""

    def __init__(
        self, sizes: Sequence[int], width: int, *, bias: bool, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.weight = shard(sizes, 1, width, dtype=dtype)
        self.bias = shard(sizes, dtype=dtype) if bias else None
