"""Mamba2 in vLLM: the operators of this package on a CPU, the engine's own layer elsewhere.

Both compute what `hybridize.models.mixers.mamba2` defines. On a CPU the engine's layer reads a
prompt with a convolution of PyTorch and a scan of one token after the other, and rounds D and
dt_bias to the type of the model.

Legend: T tokens of all requests, B requests that decode, D model width, G groups of heads that
share B and C, H heads, P channels per head, N state size, E = H P inner width, X = E + 2 G N
convolved channels, W kept inputs of the convolution, I = E + X + H projected values; heads are
those of this rank.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.distributed import divide
from vllm.distributed import get_tensor_model_parallel_world_size as get_num_ranks
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2
from vllm.platforms import current_platform

from hybridize.ops import causal_conv, gated_norm, mamba2_step, ssd
from hybridize.vllm_plugin.states import StateMixer, States, Taps, shard


def make_mamba2(vllm_config: Any, layer: int, prefix: str) -> nn.Module:
    """Return the layer for the machine this is."""
    kind = Mamba2 if current_platform.is_cpu() else EngineMamba2
    return kind(vllm_config, layer, prefix)


class Mamba2(StateMixer):
    """y = norm(ssd(silu(conv(x, B, C)), dt, A, D) * silu(z)), with one RMS norm per group."""

    steps_in_place = True

    def __init__(self, vllm_config: Any, layer: int, prefix: str) -> None:
        config, quant_config = vllm_config.model_config.hf_config, vllm_config.quant_config
        options, num_groups = config.mixer_options.get("mamba2", {}), config.num_attention_heads
        num_heads = options.get("expand", 1) * num_groups
        inner = num_heads * config.head_dim
        super().__init__(vllm_config, divide(inner, get_num_ranks()), prefix)
        self.state_size = options.get("state_size") or config.head_dim
        self.head_dim, self.width = config.head_dim, options.get("conv_width", 4)
        self.num_groups = divide(num_groups, get_num_ranks())
        self.num_heads = divide(num_heads, get_num_ranks())
        self.inner, self.shared = self.num_outputs, self.num_groups * self.state_size
        self.eps, all_shared = config.rms_norm_eps, num_groups * self.state_size
        self.in_proj = MergedColumnParallelLinear(
            config.hidden_size,
            [inner, inner, all_shared, all_shared, num_heads],
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.in_proj",
        )
        # In float32, as the operators compute, so that they need not convert them at every call.
        self.conv1d = Taps(
            [inner, all_shared, all_shared], self.width, bias=True, dtype=torch.float32
        )
        self.dt_bias = shard([num_heads], dtype=torch.float32)
        self.A_log = shard([num_heads], dtype=torch.float32)
        self.D = shard([num_heads], dtype=torch.float32)
        self.norm = _Scale(inner)
        self.out_proj = RowParallelLinear(
            inner,
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.out_proj",
        )

    def forward(self, positions_T: Tensor, hidden_TD: Tensor) -> Tensor:
        """Mix the tokens of each request, (T, D)."""
        return self.out_proj(self.mix(self.in_proj(hidden_TD)[0]))[0]

    def step(self, inputs_BI: Tensor, states: States, seen_B: Tensor) -> tuple[Tensor, States]:
        """See `StateMixer.step`."""
        y_BE, conv_BXW, ssd_BHPN = mamba2_step(
            inputs_BI,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            *(self.dt_bias, self.A_log, self.D, self.norm.weight),
            num_groups=self.num_groups,
            eps=self.eps,
            conv_state_BXW=states[0],
            ssd_state_BHPN=states[1],
        )
        return y_BE, (conv_BXW, ssd_BHPN)

    def scan(self, inputs_1TI: Tensor, states: States | None, seen: int) -> tuple[Tensor, States]:
        """See `StateMixer.scan`."""
        sizes = [self.inner, self.inner + 2 * self.shared, self.num_heads]
        z_1TE, xBC_1TX, dt_1TH = inputs_1TI.split(sizes, dim=-1)
        xBC_1TX, conv_1XW = causal_conv(
            xBC_1TX,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            state_BDW=None if states is None else states[0],
        )
        sizes = [self.inner, self.shared, self.shared]
        x_1TE, B_1TS, C_1TS = F.silu(xBC_1TX).split(sizes, dim=-1)
        y_1THP, ssd_1HPN = ssd(
            x_1TE.unflatten(-1, (self.num_heads, self.head_dim)),
            F.softplus(dt_1TH.float() + self.dt_bias),
            -torch.exp(self.A_log),
            B_1TS.unflatten(-1, (self.num_groups, self.state_size)),
            C_1TS.unflatten(-1, (self.num_groups, self.state_size)),
            self.D,
            state_BHPN=None if states is None else states[1],
        )
        y_1TE = gated_norm(
            y_1THP.flatten(2), z_1TE, self.norm.weight, num_groups=self.num_groups, eps=self.eps
        )
        return y_1TE, (conv_1XW, ssd_1HPN)

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the kept inputs, (X, W), and of the state, (H, P, N)."""
        conv = (self.inner + 2 * self.shared, self.width - 1)
        return conv, (self.num_heads, self.head_dim, self.state_size)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        """Return the dtypes of the kept inputs and of the state."""
        return torch.float32, torch.float32


class _Scale(nn.Module):
    """The parameter of a norm, under its name in files."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = shard([width], dtype=torch.float32)


class EngineMamba2(MambaMixer2):
    """The engine's own layer, whose groups of heads are query heads of the attention replaced.

    Its parameters have our names but one: it keeps A where files hold A_log, and takes -exp on
    loading.
    """

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
