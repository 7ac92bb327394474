"""Mamba1: a mixer of the form of Mamba with values and keys shared between heads, as in Apriel-H1.

Legend: B batch, T tokens, D model width, E inner width (query heads times head width), X width of
values and keys (key-value heads times head width), N state size, R rank of the step size.

Paper symbols (Gu and Dao 2023, arXiv 2312.00752): x values, B keys, C queries, z gate, dt step
size, A decay rate.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridize.core.errors import ModelError
from hybridize.models.mixers.base import Mixer, MixerContext, MixerShape, is_decoding, widen
from hybridize.ops import causal_conv, mamba1_step, selective_scan

SMALLEST_STEP, LARGEST_STEP = 1e-3, 1e-1
_TIMES = {"never": 0, "once": 1, "twice": 2}
"""How often the bias enters the step size."""


class Mamba1(Mixer):
    """y = selective_scan(silu(conv(x)), dt, A, B, C, D) * silu(z).

    Values and keys are projected once per key-value head, cut into groups of N channels, and the
    groups are repeated until there are as many as query groups.

    Args:
        state_size: N, which is also the number of channels in a group.
        conv_width: taps of the convolution over x.
        repeat: "aligned" gives each query head the groups of its own key-value head in order;
            "state" repeats each group in place, as the published Apriel-H1 weights need.
        dt_bias: how often the bias enters the step size; "twice" is what the published Apriel-H1
            weights were trained with, "never" is no bias.
        inner_size: E, where it is not that of all query heads together.
        shared_size: X, where it is not that of all key-value heads together.
        step_rank: R; a sixteenth of the model width where it is not given.
        conv_bias: whether the convolution has a bias.
        linear_bias: whether the projections of the hidden state and of the output have one.
    """

    FLOAT32 = ("A_log", "D", "dt_proj.bias")

    def __init__(  # noqa: PLR0913  the options are the sizes that published weights differ in
        self,
        shape: MixerShape,
        layer: int,
        *,
        state_size: int = 16,
        conv_width: int = 4,
        repeat: str = "aligned",
        dt_bias: str = "once",
        inner_size: int | None = None,
        shared_size: int | None = None,
        step_rank: int | None = None,
        conv_bias: bool = True,
        linear_bias: bool = False,
    ) -> None:
        super().__init__(shape, layer)
        if repeat not in ("aligned", "state") or dt_bias not in _TIMES:
            raise ModelError(
                f"mixer mamba1: repeat {repeat!r} or dt_bias {dt_bias!r} does not exist; "
                "use repeat aligned or state, dt_bias once, twice or never."
            )
        self.state_size, self.repeat, self.dt_bias = state_size, repeat, dt_bias
        self.inner_size = inner_size or shape.num_heads * shape.head_dim
        self.xb_size = shared_size or shape.num_kv_heads * shape.head_dim
        self._check_groups()
        width, rank = shape.hidden_size, step_rank or math.ceil(shape.hidden_size / 16)

        rows = 2 * self.inner_size + 2 * self.xb_size  # z, then x, B, C
        self.in_proj = nn.Linear(width, rows, bias=linear_bias)
        self.dt_in_proj = nn.Linear(width, rank, bias=linear_bias)
        self.dt_proj = nn.Linear(rank, self.inner_size, bias=dt_bias != "never")
        self.conv1d = nn.Conv1d(
            self.inner_size, self.inner_size, conv_width, groups=self.inner_size, bias=conv_bias
        )
        self.A_log = nn.Parameter(torch.empty(self.inner_size, state_size))
        self.D = nn.Parameter(torch.empty(self.inner_size))
        self.out_proj = nn.Linear(self.inner_size, width, bias=linear_bias)
        self.reset()

    def _check_groups(self) -> None:
        block = self._block
        if self.inner_size % self.xb_size or self.xb_size % block:
            raise ModelError(
                f"mixer mamba1: {self.xb_size} values and keys in groups of {block} cannot be "
                f"repeated to {self.inner_size} channels."
            )
        if block % self.state_size:
            raise ModelError(
                f"mixer mamba1: state_size {self.state_size} does not divide the head width "
                f"{block}."
            )

    def forward(self, hidden_BTD: Tensor, ctx: MixerContext) -> Tensor:
        """Mix the tokens of each document; see `Mixer.forward`."""
        if is_decoding(hidden_BTD, ctx):
            return self.out_proj(self._step(hidden_BTD, ctx))
        sizes = [self.inner_size, self.xb_size, self.xb_size, self.inner_size]
        z_BTE, x_BTX, B_BTX, C_BTE = self.in_proj(hidden_BTD).split(sizes, dim=-1)
        # The bias is float32 also in a bfloat16 model, so it is added after the product.
        dt_BTE = widen(F.linear(self.dt_in_proj(hidden_BTD), self.dt_proj.weight))
        if self.dt_proj.bias is not None:
            dt_BTE = dt_BTE + _TIMES[self.dt_bias] * widen(self.dt_proj.bias)
        state = {} if ctx.cache is None else ctx.cache.get_state(self.layer)

        x_BTE, conv_state = causal_conv(
            self._share(x_BTX),
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            segments_BT=ctx.segments_BT,
            state_BDW=state.get("conv"),
        )
        y_BTE, scan_state = selective_scan(
            F.silu(x_BTE),
            F.softplus(dt_BTE),
            -torch.exp(widen(self.A_log)),
            self._share(B_BTX).unflatten(-1, (-1, self.state_size)),
            C_BTE.unflatten(-1, (-1, self.state_size)),
            widen(self.D),
            segments_BT=ctx.segments_BT,
            state_BDN=state.get("scan"),
        )
        if ctx.cache is not None:
            state.update(conv=conv_state.contiguous(), scan=scan_state)
        return self.out_proj(y_BTE * F.silu(z_BTE))

    def _step(self, hidden_BTD: Tensor, ctx: MixerContext) -> Tensor:
        """Take in one token of each row and update the states, which are the cache's own."""
        assert ctx.cache is not None
        state, segments_BT = ctx.cache.get_state(self.layer), ctx.segments_BT
        hidden_BD = hidden_BTD[:, 0]
        dt_bias_E: Tensor | None = self.dt_proj.bias
        if dt_bias_E is not None and _TIMES[self.dt_bias] > 1:
            dt_bias_E = _TIMES[self.dt_bias] * widen(dt_bias_E)
        y_BE, conv_state, scan_state = mamba1_step(
            self.in_proj(hidden_BD),
            F.linear(self.dt_in_proj(hidden_BD), self.dt_proj.weight),
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            *(dt_bias_E, self.A_log, self.D),
            block=self._block,
            segments_B=None if segments_BT is None else segments_BT[:, 0],
            conv_state_BEW=state.get("conv"),
            scan_state_BEN=state.get("scan"),
        )
        state.update(conv=conv_state, scan=scan_state)
        return y_BE[:, None]

    @property
    def _block(self) -> int:
        """Channels of values and keys that are repeated as one."""
        return self.state_size if self.repeat == "state" else self.shape.head_dim

    def _share(self, values_BTX: Tensor) -> Tensor:
        """Repeat what the key-value heads project over the query heads, (B, T, E)."""
        blocks_BTSK = values_BTX.unflatten(-1, (-1, self._block))
        return blocks_BTSK.repeat_interleave(self.inner_size // self.xb_size, dim=2).flatten(2)

    def gate_rows(self) -> Tensor:
        """Return the rows (E, D) that project the gate z; writing to them changes the mixer."""
        return self.in_proj.weight[: self.inner_size]

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw all parameters as if no teacher were given: uniform, S4D-real decay, D = 1."""
        with torch.no_grad():
            for linear in (self.in_proj, self.dt_in_proj, self.dt_proj, self.out_proj):
                bound = linear.in_features**-0.5
                linear.weight.uniform_(-bound, bound, generator=generator)
                if linear.bias is not None and linear is not self.dt_proj:
                    linear.bias.uniform_(-bound, bound, generator=generator)
            bound = self.conv1d.kernel_size[0] ** -0.5
            for parameter in self.conv1d.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
            if self.dt_proj.bias is not None:
                low, high = math.log(SMALLEST_STEP), math.log(LARGEST_STEP)
                self.dt_proj.bias.uniform_(low, high, generator=generator).exp_().expm1_().log_()
            rates_N = torch.arange(1, self.state_size + 1, device=self.A_log.device)
            self.A_log.copy_(rates_N.float().log().expand_as(self.A_log))
            self.D.fill_(1)
