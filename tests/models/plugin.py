"""A mixer that this package does not know: the running mean of a document, projected."""

import torch
from torch import Tensor, nn

from hybridize.models.mixers import Mixer, MixerContext, MixerShape


class Average(Mixer):
    """Mean of all tokens of the document so far."""

    def __init__(self, shape: MixerShape, layer: int) -> None:
        super().__init__(shape, layer)
        self.proj = nn.Linear(shape.hidden_size, shape.hidden_size)
        self.reset()

    def forward(self, hidden_BTD: Tensor, ctx: MixerContext) -> Tensor:
        state = {} if ctx.cache is None else ctx.cache.get_state(self.layer)
        segments_BT = ctx.segments_BT
        if segments_BT is None:
            segments_BT = torch.ones(hidden_BTD.shape[:2], dtype=torch.long)
        total_BD = state.get("total", torch.zeros_like(hidden_BTD[:, 0]))
        count_B1 = state.get("count", torch.zeros_like(total_BD[:, :1]))
        document_B = state.get("document", torch.zeros_like(segments_BT[:, 0]))
        outputs = []
        for t in range(hidden_BTD.shape[1]):
            number_B = segments_BT[:, t]
            keep_B1 = ((number_B == 0) | (document_B == 0) | (number_B == document_B))[:, None]
            real_B1 = (number_B != 0)[:, None]
            total_BD = total_BD * keep_B1 + hidden_BTD[:, t] * real_B1
            count_B1 = count_B1 * keep_B1 + real_B1
            document_B = torch.where(number_B == 0, document_B, number_B)
            outputs.append(total_BD / count_B1.clamp(min=1))
        if ctx.cache is not None:
            state.update(total=total_BD, count=count_B1, document=document_B)
        return self.proj(torch.stack(outputs, dim=1))

    def reset(self, generator: torch.Generator | None = None) -> None:
        with torch.no_grad():
            self.proj.weight.uniform_(-0.1, 0.1, generator=generator)
            self.proj.bias.zero_()
