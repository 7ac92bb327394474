"""GatedDelta: a mixer of the form of Gated DeltaNet as the Qwen3.5 text class has it.

Legend: B batch, T tokens, D model width, G heads of queries and keys, H heads of values, P channels
per head, E = H P inner width, F = G P width of queries and of keys, X = 2 F + E convolved channels,
W convolution width.

Paper symbols (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464): q, k, v; g logarithm of the
decay alpha; beta writing strength; z output gate.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridize.core.errors import ModelError
from hybridize.models.mixers.base import Mixer, MixerContext, MixerShape, is_decoding, widen
from hybridize.models.mixers.mamba2 import STEP_SHARE, get_slow_decay
from hybridize.ops import causal_conv, gated_delta_rule, gated_delta_step

SMALL_TAP = 0.1
"""Taps over queries and keys at the start. SiLU is nearly linear there, so that with the length
divided out the directions are those of the attention's queries and keys."""
LENGTH_EPS = 1e-6
"""Added to squared lengths of queries and keys, as in the Qwen3.5 class."""


class GatedDelta(Mixer):
    """y = norm(gated_delta_rule(q, k, v, g, beta)) * silu(z); q, k and v pass silu(conv(.)).

    Parameters have the names they have in the Qwen3.5 class (`linear_attn`), which holds them with
    `linear_num_key_heads` G, `linear_num_value_heads` H, and both head widths P. There, value
    heads share keys; in the attention that is replaced, query heads share keys and values. So rows
    of keys and values are repeated over the query heads: G is the number of query heads, and H is
    G times `expand`. For a teacher with s query heads to a key head this costs 2 (1 - 1/s) D E
    weights a layer more than the attention's projections (expand 1), and the state has E P
    values, but what the mixer projects is what the attention projected.

    Args:
        expand: value heads per query head, 1 or 2; the two share queries and keys and differ in
            decay.
        conv_width: W.
        conv_bias: whether the convolution adds a bias, in which the biases of a teacher's queries,
            keys and values find a place. The Qwen3.5 class has none.
    """

    FLOAT32 = ("A_log", "dt_bias")

    def __init__(
        self,
        shape: MixerShape,
        layer: int,
        *,
        expand: int = 1,
        conv_width: int = 4,
        conv_bias: bool = False,
    ) -> None:
        super().__init__(shape, layer)
        if expand not in (1, 2):
            raise ModelError(f"mixer gated_delta: expand {expand} does not exist; use 1 or 2.")
        self.num_groups, self.head_dim = shape.num_heads, shape.head_dim
        self.num_heads = expand * shape.num_heads
        self.key_size = self.num_groups * self.head_dim
        self.inner_size = self.num_heads * self.head_dim
        self.conv_size = 2 * self.key_size + self.inner_size

        hidden = shape.hidden_size
        self.in_proj_qkv = nn.Linear(hidden, self.conv_size, bias=False)
        self.in_proj_z = nn.Linear(hidden, self.inner_size, bias=False)
        self.in_proj_b = nn.Linear(hidden, self.num_heads, bias=False)
        self.in_proj_a = nn.Linear(hidden, self.num_heads, bias=False)
        self.conv1d = nn.Conv1d(
            self.conv_size, self.conv_size, conv_width, groups=self.conv_size, bias=conv_bias
        )
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads))
        self.A_log = nn.Parameter(torch.empty(self.num_heads))
        self.norm = HeadNorm(self.head_dim, shape.norm_eps)
        self.out_proj = nn.Linear(self.inner_size, hidden, bias=False)
        self.reset()

    def forward(self, hidden_BTD: Tensor, ctx: MixerContext) -> Tensor:
        """Mix the tokens of each document; see `Mixer.forward`."""
        if is_decoding(hidden_BTD, ctx):
            return self.out_proj(self._step(hidden_BTD, ctx))
        state = {} if ctx.cache is None else ctx.cache.get_state(self.layer)
        qkv_BTX, conv_state = causal_conv(
            self.in_proj_qkv(hidden_BTD),
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            segments_BT=ctx.segments_BT,
            state_BDW=state.get("conv"),
        )
        q_BTF, k_BTF, v_BTE = F.silu(qkv_BTX).split(
            [self.key_size, self.key_size, self.inner_size], dim=-1
        )
        dt_BTH = F.softplus(widen(self.in_proj_a(hidden_BTD)) + widen(self.dt_bias))
        y_BTHP, delta_state = gated_delta_rule(
            self._scale(q_BTF) * self.head_dim**-0.5,
            self._scale(k_BTF),
            v_BTE.unflatten(-1, (self.num_heads, self.head_dim)),
            -torch.exp(widen(self.A_log)) * dt_BTH,
            widen(self.in_proj_b(hidden_BTD)).sigmoid(),
            segments_BT=ctx.segments_BT,
            state_BHPN=state.get("delta"),
        )
        if ctx.cache is not None:
            state.update(conv=conv_state.contiguous(), delta=delta_state)
        z_BTHP = self.in_proj_z(hidden_BTD).unflatten(-1, (self.num_heads, self.head_dim))
        return self.out_proj(self.norm(y_BTHP, z_BTHP).flatten(2))

    def _step(self, hidden_BTD: Tensor, ctx: MixerContext) -> Tensor:
        """Take in one token of each row and update the states, which are the cache's own."""
        assert ctx.cache is not None
        state, segments_BT = ctx.cache.get_state(self.layer), ctx.segments_BT
        hidden_BD = hidden_BTD[:, 0]
        y_BE, conv_state, delta_state = gated_delta_step(
            *(self.in_proj_qkv(hidden_BD), self.in_proj_z(hidden_BD)),
            *(self.in_proj_b(hidden_BD), self.in_proj_a(hidden_BD)),
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            *(self.dt_bias, self.A_log, self.norm.weight),
            eps=self.norm.eps,
            length_eps=LENGTH_EPS,
            segments_B=None if segments_BT is None else segments_BT[:, 0],
            conv_state_BXW=state.get("conv"),
            delta_state_BHPN=state.get("delta"),
        )
        state.update(conv=conv_state, delta=delta_state)
        return y_BE[:, None]

    def _scale(self, values_BTF: Tensor) -> Tensor:
        """Give the queries or keys of each head length 1, in float32."""
        values_BTGP = widen(values_BTF).unflatten(-1, (self.num_groups, self.head_dim))
        squared_BTG1 = values_BTGP.square().sum(-1, keepdim=True)
        return values_BTGP * torch.rsqrt(squared_BTG1 + LENGTH_EPS)

    def gate_rows(self) -> Tensor:
        """Return the rows (E, D) that project the gate z; writing to them changes the mixer."""
        return self.in_proj_z.weight

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw all parameters as if no teacher were given.

        The convolution passes its input through, queries and keys on a scale at which SiLU keeps
        their direction. Memories are long and depend on the head alone until training makes them
        depend on the token; see `Mamba2.reset`.
        """
        bound = 1 / math.sqrt(self.shape.hidden_size)
        with torch.no_grad():
            for linear in (self.in_proj_qkv, self.in_proj_z, self.in_proj_b, self.in_proj_a):
                linear.weight.uniform_(-bound, bound, generator=generator)
            self.in_proj_a.weight *= STEP_SHARE
            self.out_proj.weight.uniform_(-bound, bound, generator=generator)
            for parameter in self.conv1d.parameters():
                parameter.zero_()
            self.conv1d.weight[..., -1] = 1
            self.conv1d.weight[: 2 * self.key_size] *= SMALL_TAP
            self.norm.weight.fill_(1)
            self.dt_bias.fill_(math.log(math.expm1(1)))
            self.A_log.copy_(get_slow_decay(self.num_groups, self.num_heads // self.num_groups))


class HeadNorm(nn.Module):
    """Divide each head by its root mean square, scale its channels, then gate with silu(z)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, y_BTHP: Tensor, z_BTHP: Tensor) -> Tensor:
        """Return the normed, gated channels; norm and gate are computed in float32."""
        wide_BTHP = widen(y_BTHP)
        wide_BTHP = wide_BTHP * torch.rsqrt(wide_BTHP.square().mean(-1, keepdim=True) + self.eps)
        normed_BTHP = self.weight * wide_BTHP.to(y_BTHP.dtype)
        return (normed_BTHP * F.silu(widen(z_BTHP))).to(y_BTHP.dtype)
