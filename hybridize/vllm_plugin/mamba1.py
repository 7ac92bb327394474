"""Mamba1 in vLLM, also that of published Apriel-H1 weights; vLLM has no scan of its own on a CPU.

Legend: T tokens of all requests, B requests that decode, D model width, E inner width, X width of
values and of keys, N state size, R rank of the step size, W kept inputs of the convolution; E and X
are those of this rank. What it computes is said in `hybridize.models.mixers.mamba1`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from vllm.distributed import divide
from vllm.distributed import get_tensor_model_parallel_world_size as get_num_ranks
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)

from hybridize.core.errors import ModelError
from hybridize.ops import causal_conv, mamba1_step, selective_scan
from hybridize.vllm_plugin.states import StateMixer, States, Taps, shard

TIMES = {"never": 0, "once": 1, "twice": 2}
"""How often the bias enters the step size."""
Shapes = tuple[tuple[int, ...], ...]


class Mamba1(StateMixer):
    """y = selective_scan(silu(conv(x)), dt, A, B, C, D) * silu(z), with x and B shared by heads."""

    def __init__(self, vllm_config: Any, layer: int, prefix: str) -> None:
        config, quant_config = vllm_config.model_config.hf_config, vllm_config.quant_config
        options, hidden = config.mixer_options.get("mamba1", {}), config.hidden_size
        sizes = Sizes(config, options)
        super().__init__(vllm_config, sizes.inner, prefix)
        self.sizes = sizes
        self.times = TIMES[options.get("dt_bias", "once")]
        bias = options.get("linear_bias", False)
        all_inner, all_shared = sizes.all_inner, sizes.all_shared
        self.in_proj = MergedColumnParallelLinear(
            hidden,
            [all_inner, all_shared, all_shared, all_inner],
            bias=bias,
            quant_config=quant_config,
            prefix=f"{prefix}.in_proj",
        )
        self.dt_in_proj = ReplicatedLinear(
            hidden, sizes.rank, bias=bias, prefix=f"{prefix}.dt_in_proj"
        )
        self.dt_proj = ColumnParallelLinear(
            sizes.rank, all_inner, bias=False, skip_bias_add=True, prefix=f"{prefix}.dt_proj"
        )
        if self.times:
            self.dt_proj.bias = shard([all_inner], dtype=torch.float32)
        self.conv1d = Taps([all_inner], sizes.width, bias=options.get("conv_bias", True))
        self.A_log = shard([all_inner], sizes.state, dtype=torch.float32)
        self.D = shard([all_inner], dtype=torch.float32)
        self.out_proj = RowParallelLinear(
            all_inner, hidden, bias=bias, quant_config=quant_config, prefix=f"{prefix}.out_proj"
        )

    def forward(self, positions_T: Tensor, hidden_TD: Tensor) -> Tensor:
        """Mix the tokens of each request, (T, D)."""
        dt_TE = self.dt_proj(self.dt_in_proj(hidden_TD)[0])[0]
        inputs_TI = torch.cat([self.in_proj(hidden_TD)[0], dt_TE], dim=-1)
        return self.out_proj(self.mix(inputs_TI))[0]

    def step(self, inputs_BI: Tensor, states: States, seen_B: Tensor) -> tuple[Tensor, States]:
        """See `StateMixer.step`."""
        y_BE, conv_BEW, scan_BEN = mamba1_step(
            inputs_BI[:, : -self.sizes.inner],
            inputs_BI[:, -self.sizes.inner :],
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            *(self._get_bias(), self.A_log, self.D),
            block=self.sizes.block,
            conv_state_BEW=states[0],
            scan_state_BEN=states[1],
        )
        return y_BE, (conv_BEW, scan_BEN)

    def scan(self, inputs_1TI: Tensor, states: States | None, seen: int) -> tuple[Tensor, States]:
        """See `StateMixer.scan`."""
        inner, shared = self.sizes.inner, self.sizes.shared
        parts = inputs_1TI.split([inner, shared, shared, inner, inner], dim=-1)
        z_1TE, x_1TX, B_1TX, C_1TE, dt_1TE = parts
        dt_1TE, bias_E = dt_1TE.float(), self._get_bias()
        x_1TE, conv_1EW = causal_conv(
            self._share(x_1TX),
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            state_BDW=None if states is None else states[0],
        )
        y_1TE, scan_1EN = selective_scan(
            F.silu(x_1TE),
            F.softplus(dt_1TE if bias_E is None else dt_1TE + bias_E),
            -torch.exp(self.A_log),
            self._share(B_1TX).unflatten(-1, (-1, self.sizes.state)),
            C_1TE.unflatten(-1, (-1, self.sizes.state)),
            self.D,
            state_BDN=None if states is None else states[1],
        )
        return y_1TE * F.silu(z_1TE), (conv_1EW, scan_1EN)

    def _get_bias(self) -> Tensor | None:
        return self.times * self.dt_proj.bias if self.times else None

    def _share(self, values_1TX: Tensor) -> Tensor:
        blocks_1TSK = values_1TX.unflatten(-1, (-1, self.sizes.block))
        repeats = self.sizes.inner // self.sizes.shared
        return blocks_1TSK.repeat_interleave(repeats, dim=2).flatten(2)

    def get_state_shape(self) -> Shapes:
        """Return the shapes of the kept inputs, (E, W), and of the state, (E, N)."""
        return (self.sizes.inner, self.sizes.width - 1), (self.sizes.inner, self.sizes.state)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        """Return the dtypes of the kept inputs and of the state."""
        return self.cache_dtype, torch.float32


class Sizes:
    """The sizes of the mixer, from the options and, where they leave them out, from attention."""

    def __init__(self, config: Any, options: dict[str, Any]) -> None:
        heads, head_dim = config.num_attention_heads, config.head_dim
        self.state: int = options.get("state_size", 16)
        self.width: int = options.get("conv_width", 4)
        self.all_inner: int = options.get("inner_size") or heads * head_dim
        self.all_shared: int = options.get("shared_size") or config.num_key_value_heads * head_dim
        self.rank: int = options.get("step_rank") or math.ceil(config.hidden_size / 16)
        self.block: int = self.state if options.get("repeat") == "state" else head_dim
        num_ranks = get_num_ranks()
        if self.all_shared % (num_ranks * self.block):
            raise ModelError(
                f"mamba1: {self.all_shared} values and keys in groups of {self.block} cannot be "
                f"split over {num_ranks} processes. Use a tensor parallel size that divides them."
            )
        self.inner, self.shared = divide(self.all_inner, num_ranks), self.all_shared // num_ranks
