"""Mamba2: a mixer of the form of Mamba-2 with one norm per group, as GraniteMoeHybrid has it.

Legend: B batch, T tokens, D model width, H heads, P channels per head, G groups of heads that share
B and C, N state size, E = H P inner width, X = E + 2 G N convolved channels, W convolution width,
I = E + X + H projected values.

Paper symbols (Dao and Gu 2024, arXiv 2405.21060): x values, B keys, C queries, z gate, dt step
size, A decay rate.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridize.core.errors import ModelError
from hybridize.models.mixers.base import Mixer, MixerContext, MixerShape, is_decoding, widen
from hybridize.ops import causal_conv, gated_norm, mamba2_step, ssd

SHORTEST_MEMORY, LONGEST_MEMORY = 4.0, 4096.0
"""Range over the heads, at the start, of the tokens after which a write has decayed to 1/e."""
STEP_SHARE = 0.1
"""Size of the step's rows in the input projection at the start, relative to the other rows."""


class Mamba2(Mixer):
    """y = norm(ssd(silu(conv(x, B, C)), dt, A, D) * silu(z)); the norm is one RMS norm per group.

    Args:
        expand: heads per attention head, 1 or 2; the two share B and C and differ in decay.
        state_size: N; None is the width of an attention head.
        conv_width: W.
    """

    FLOAT32 = ("A_log", "D", "dt_bias")

    def __init__(
        self,
        shape: MixerShape,
        layer: int,
        *,
        expand: int = 1,
        state_size: int | None = None,
        conv_width: int = 4,
    ) -> None:
        super().__init__(shape, layer)
        if expand not in (1, 2):
            raise ModelError(f"mixer mamba2: expand {expand} does not exist; use 1 or 2.")
        self.num_groups, self.head_dim = shape.num_heads, shape.head_dim
        self.num_heads = expand * shape.num_heads
        self.state_size = shape.head_dim if state_size is None else state_size
        self.inner_size = self.num_heads * self.head_dim
        self.bc_size = self.num_groups * self.state_size
        self.conv_size = self.inner_size + 2 * self.bc_size

        rows = self.inner_size + self.conv_size + self.num_heads  # z, then x B C, then dt
        self.in_proj = nn.Linear(shape.hidden_size, rows, bias=False)
        self.conv1d = nn.Conv1d(
            self.conv_size, self.conv_size, conv_width, groups=self.conv_size, bias=True
        )
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads))
        self.A_log = nn.Parameter(torch.empty(self.num_heads))
        self.D = nn.Parameter(torch.empty(self.num_heads))
        self.norm = GroupedNorm(self.inner_size, self.num_groups, shape.norm_eps)
        self.out_proj = nn.Linear(self.inner_size, shape.hidden_size, bias=False)
        self.reset()

    def forward(self, hidden_BTD: Tensor, ctx: MixerContext) -> Tensor:
        """Mix the tokens of each document; see `Mixer.forward`."""
        projected_BTI = self.in_proj(hidden_BTD)
        if is_decoding(hidden_BTD, ctx):
            return self.out_proj(self._step(projected_BTI, ctx))
        sizes = [self.inner_size, self.conv_size, self.num_heads]
        z_BTE, xBC_BTX, dt_BTH = projected_BTI.split(sizes, dim=-1)
        state = {} if ctx.cache is None else ctx.cache.get_state(self.layer)

        xBC_BTX, conv_state = causal_conv(
            xBC_BTX,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            segments_BT=ctx.segments_BT,
            state_BDW=state.get("conv"),
        )
        x_BTE, B_BTE, C_BTE = F.silu(xBC_BTX).split(
            [self.inner_size, self.bc_size, self.bc_size], dim=-1
        )
        y_BTHP, ssd_state = ssd(
            x_BTE.unflatten(-1, (self.num_heads, self.head_dim)),
            F.softplus(widen(dt_BTH) + widen(self.dt_bias)),
            -torch.exp(widen(self.A_log)),
            B_BTE.unflatten(-1, (self.num_groups, self.state_size)),
            C_BTE.unflatten(-1, (self.num_groups, self.state_size)),
            self.D,
            segments_BT=ctx.segments_BT,
            state_BHPN=state.get("ssd"),
        )
        if ctx.cache is not None:
            state.update(conv=conv_state.contiguous(), ssd=ssd_state)
        return self.out_proj(self.norm(y_BTHP.flatten(2), z_BTE))

    def _step(self, projected_BTI: Tensor, ctx: MixerContext) -> Tensor:
        """Take in one token of each row and update the states, which are the cache's own."""
        assert ctx.cache is not None
        state, segments_BT = ctx.cache.get_state(self.layer), ctx.segments_BT
        y_BE, conv_state, ssd_state = mamba2_step(
            projected_BTI[:, 0],
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            *(self.dt_bias, self.A_log, self.D, self.norm.weight),
            num_groups=self.num_groups,
            eps=self.norm.eps,
            segments_B=None if segments_BT is None else segments_BT[:, 0],
            conv_state_BXW=state.get("conv"),
            ssd_state_BHPN=state.get("ssd"),
        )
        state.update(conv=conv_state, ssd=ssd_state)
        return y_BE[:, None]

    def gate_rows(self) -> Tensor:
        """Return the rows (E, D) that project the gate z; writing to them changes the mixer."""
        return self.in_proj.weight[: self.inner_size]

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw all parameters as if no teacher were given.

        The convolution passes its input through. The step size is near 1 for every token, so that
        decay depends on the head alone until training makes it depend on the token. D is 0: the
        attention that is replaced has no path around its memory, and the short memories already
        hold the current token.
        """
        bound = 1 / math.sqrt(self.shape.hidden_size)
        with torch.no_grad():
            self.in_proj.weight.uniform_(-bound, bound, generator=generator)
            self.in_proj.weight[-self.num_heads :] *= STEP_SHARE
            self.out_proj.weight.uniform_(-bound, bound, generator=generator)
            for parameter in self.conv1d.parameters():
                parameter.zero_()
            self.conv1d.weight[..., -1] = 1
            self.norm.weight.fill_(1)
            self.D.fill_(0)
            self.dt_bias.fill_(math.log(math.expm1(1)))
            self.A_log.copy_(get_slow_decay(self.num_groups, self.num_heads // self.num_groups))


class GroupedNorm(nn.Module):
    """Gate with silu(z), divide each group by its root mean square, scale each channel."""

    def __init__(self, width: int, num_groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.num_groups, self.eps = num_groups, eps

    def forward(self, y_BTE: Tensor, z_BTE: Tensor) -> Tensor:
        """Return the gated, normed channels; the norm is computed in float32."""
        return gated_norm(y_BTE, z_BTE, self.weight, num_groups=self.num_groups, eps=self.eps)


def get_slow_decay(num_groups: int, heads_per_group: int) -> Tensor:
    """Return log(-A) per head: at dt = 1, memories evenly spread in log from 4 to 4096 tokens.

    The heads of one group get memories far apart: group g holds entries g, g + G, ... of the
    spread.
    """
    num_heads = num_groups * heads_per_group
    spread = torch.linspace(math.log(SHORTEST_MEMORY), math.log(LONGEST_MEMORY), num_heads)
    return -spread.view(heads_per_group, num_groups).T.flatten()
