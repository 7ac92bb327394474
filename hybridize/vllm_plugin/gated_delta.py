"""GatedDelta in vLLM.

Legend: T tokens of all requests, B requests that decode, D model width, G heads of queries and
keys, H heads of values, P channels per head, E = H P inner width, X = 2 G P + E convolved channels,
W kept inputs of the convolution; heads are those of this rank. What it computes is said in
`hybridize.models.mixers.gated_delta`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.distributed import divide
from vllm.distributed import get_tensor_model_parallel_world_size as get_num_ranks
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear

from hybridize.ops import causal_conv, gated_delta_rule, gated_delta_step
from hybridize.vllm_plugin.states import StateMixer, States, Taps, shard

LENGTH_EPS = 1e-6
"""Added to squared lengths of queries and keys."""


class GatedDelta(StateMixer):
    """y = norm(gated_delta_rule(q, k, v, g, beta)) * silu(z); q, k and v pass silu(conv(.))."""

    def __init__(self, vllm_config: Any, layer: int, prefix: str) -> None:
        config, quant_config = vllm_config.model_config.hf_config, vllm_config.quant_config
        options = config.mixer_options.get("gated_delta", {})
        num_groups = config.num_attention_heads
        num_heads = options.get("expand", 1) * num_groups
        keys, values = num_groups * config.head_dim, num_heads * config.head_dim
        super().__init__(vllm_config, divide(values, get_num_ranks()), prefix)
        self.head_dim, self.width = config.head_dim, options.get("conv_width", 4)
        self.num_groups = divide(num_groups, get_num_ranks())
        self.num_heads = divide(num_heads, get_num_ranks())
        self.inner, self.key_size = self.num_outputs, self.num_groups * self.head_dim
        for name, sizes in (
            ("in_proj_qkv", [keys, keys, values]),
            ("in_proj_z", [values]),
            ("in_proj_b", [num_heads]),
            ("in_proj_a", [num_heads]),
        ):
            linear = MergedColumnParallelLinear(
                config.hidden_size,
                sizes,
                bias=False,
                quant_config=quant_config,
                prefix=f"{prefix}.{name}",
            )
            self.add_module(name, linear)
        self.conv1d = Taps([keys, keys, values], self.width, bias=options.get("conv_bias", False))
        self.dt_bias = shard([num_heads], dtype=torch.float32)
        self.A_log = shard([num_heads], dtype=torch.float32)
        self.norm = _HeadNorm(self.head_dim)
        self.eps = config.rms_norm_eps
        self.out_proj = RowParallelLinear(
            values,
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.out_proj",
        )

    def forward(self, positions_T: Tensor, hidden_TD: Tensor) -> Tensor:
        """Mix the tokens of each request, (T, D)."""
        names = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
        inputs_TI = torch.cat([getattr(self, name)(hidden_TD)[0] for name in names], dim=-1)
        return self.out_proj(self.mix(inputs_TI))[0]

    def _split(self, inputs: Tensor) -> tuple[Tensor, ...]:
        sizes = [2 * self.key_size + self.inner, self.inner, self.num_heads, self.num_heads]
        return inputs.split(sizes, dim=-1)

    def step(self, inputs_BI: Tensor, states: States, seen_B: Tensor) -> tuple[Tensor, States]:
        """See `StateMixer.step`."""
        qkv_BX, z_BE, b_BH, a_BH = self._split(inputs_BI)
        y_BE, conv_BXW, delta_BHPN = gated_delta_step(
            *(qkv_BX, z_BE, b_BH, a_BH),
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            *(self.dt_bias, self.A_log, self.norm.weight),
            eps=self.eps,
            length_eps=LENGTH_EPS,
            conv_state_BXW=states[0],
            delta_state_BHPN=states[1],
        )
        return y_BE, (conv_BXW, delta_BHPN)

    def scan(self, inputs_1TI: Tensor, states: States | None, seen: int) -> tuple[Tensor, States]:
        """See `StateMixer.scan`."""
        qkv_1TX, z_1TE, b_1TH, a_1TH = self._split(inputs_1TI)
        qkv_1TX, conv_1XW = causal_conv(
            qkv_1TX,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            state_BDW=None if states is None else states[0],
        )
        sizes = [self.key_size, self.key_size, self.inner]
        q_1TF, k_1TF, v_1TE = F.silu(qkv_1TX).split(sizes, dim=-1)
        y_1THP, delta_1HPN = gated_delta_rule(
            self._scale(q_1TF) * self.head_dim**-0.5,
            self._scale(k_1TF),
            v_1TE.unflatten(-1, (self.num_heads, self.head_dim)),
            -torch.exp(self.A_log) * F.softplus(a_1TH.float() + self.dt_bias),
            b_1TH.float().sigmoid(),
            state_BHPN=None if states is None else states[1],
        )
        z_1THP = z_1TE.unflatten(-1, (self.num_heads, self.head_dim))
        return self.norm(y_1THP, z_1THP, self.eps).flatten(2), (conv_1XW, delta_1HPN)

    def _scale(self, values_1TF: Tensor) -> Tensor:
        """Give the queries or keys of each head length 1, in float32."""
        values_1TGP = values_1TF.float().unflatten(-1, (self.num_groups, self.head_dim))
        squared_1TG1 = values_1TGP.square().sum(-1, keepdim=True)
        return values_1TGP * torch.rsqrt(squared_1TG1 + LENGTH_EPS)

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the kept inputs, (X, W), and of the state, (H, P, P)."""
        conv = (2 * self.key_size + self.inner, self.width - 1)
        return conv, (self.num_heads, self.head_dim, self.head_dim)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        """Return the dtypes of the kept inputs and of the state."""
        return self.cache_dtype, torch.float32


class _HeadNorm(nn.Module):
    """Divide a head by its root mean square, scale its channels, gate with silu(z)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, y_1THP: Tensor, z_1THP: Tensor, eps: float) -> Tensor:
        wide = y_1THP.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (self.weight * wide.to(z_1THP.dtype) * F.silu(z_1THP.float())).to(z_1THP.dtype)
