"""A mixer of one's own: a gated short convolution, named in a recipe by where it is.

    mixer: {kind: "my_mixer:GatedConvolution", init: random, options: {width: 8}}

Legend: B batch, T tokens, D model width, W kept inputs (width - 1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridize.models.mixers import Mixer, MixerContext, MixerShape
from hybridize.ops import causal_conv


class GatedConvolution(Mixer):
    """out(silu(gate(x)) * conv(value(x))): each token sees itself and the width - 1 before it.

    Args:
        width: taps of the convolution, in tokens.
    """

    def __init__(self, shape: MixerShape, layer: int, *, width: int = 4) -> None:
        super().__init__(shape, layer)
        self.width = width
        self.value = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)
        self.gate = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)
        self.taps_DW = nn.Parameter(torch.empty(shape.hidden_size, width))
        self.out = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)
        self.reset()

    def forward(self, hidden_BTD: Tensor, ctx: MixerContext) -> Tensor:
        """Mix the tokens of each document; return what the residual stream gains."""
        state = {} if ctx.cache is None else ctx.cache.get_state(self.layer)
        # The operator knows the rules of packed rows: nothing crosses from one document into
        # the next, and padding changes no other token.
        mixed_BTD, kept_BDW = causal_conv(
            self.value(hidden_BTD),
            self.taps_DW,
            None,
            segments_BT=ctx.segments_BT,
            state_BDW=state.get("conv"),
        )
        if ctx.cache is not None:  # a tensor of fixed size, batch first, for the next call
            state["conv"] = kept_BDW.contiguous()
        return self.out(F.silu(self.gate(hidden_BTD)) * mixed_BTD)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw all parameters; a layer draws the same ones whichever others are converted."""
        bound = self.shape.hidden_size**-0.5
        with torch.no_grad():
            for linear in (self.value, self.gate, self.out):
                linear.weight.uniform_(-bound, bound, generator=generator)
            self.taps_DW.uniform_(-1, 1, generator=generator)
