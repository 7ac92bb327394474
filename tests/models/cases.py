"""Every mixer there is, in one layer of its own, and the slow definition each is held against.

Legend: B batch, T tokens, D model width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hybridize.models import HybridConfig, HybridForCausalLM
from hybridize.models.cache import HybridCache
from hybridize.models.families import find_family
from hybridize.models.mixers import MIXERS
from hybridize.models.mixers.sliding import Sliding
from hybridize.ops import forms

SMALL: dict[str, dict[str, Any]] = {
    "mamba1": {"state_size": 4},
    "sliding": {"window": 9, "sinks": 2},
}
"""Options that make a mixer fit tiny heads, and a window shorter than the test's documents."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba2-expand2": ("mamba2", {"expand": 2, "conv_width": 3}),
    "mamba1-published": ("mamba1", {"state_size": 4, "repeat": "state", "dt_bias": "twice"}),
    "sliding-plain": ("sliding", {"window": 1, "sinks": 0}),
    "attention": ("attention", {}),
    "users-own": ("examples.my_mixer:GatedConvolution", {"width": 3}),
    "plugin": ("tests.models.plugin:Average", {}),
}
CASES = {kind: (kind, SMALL.get(kind, {})) for kind in MIXERS} | VARIANTS


def make_model(
    case: str,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 8,
    width: int = 32,
    family: str = "llama",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> HybridForCausalLM:
    """Make a model of one layer whose mixer has no special values, such as a D of 0."""
    kind, options = CASES[case]
    teacher = find_family(family).config(
        vocab_size=16,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=512,
        pad_token_id=0,
        attention_bias=True,
    )
    config = HybridConfig(
        teacher=teacher, mixers=[kind], mixer_options={kind: options}, dtype=dtype
    )
    torch.manual_seed(seed)
    model = HybridForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.2
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype).eval()


def mix(
    model: HybridForCausalLM, hidden_BTD: Tensor, *, cache: HybridCache | None = None, **who: Tensor
) -> Tensor:
    """Run the mixer of the only layer; `who` is attention_mask or segments_BT, as in a forward.

    With a mask, positions are counted from it, as `generate` does.
    """
    if "attention_mask" in who:
        positions_BS = (who["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        who["positions_BT"] = positions_BS[:, -hidden_BTD.shape[1] :]
    ctx = model.make_context(hidden_BTD, cache=cache, **who)
    mixed_BTD = model.model.layers[0].mix(hidden_BTD, ctx)
    if cache is not None:
        cache.advance(hidden_BTD.shape[1])
    return mixed_BTD


def mix_slowly(model: HybridForCausalLM, hidden_BTD: Tensor) -> Tensor:
    """Run the definition of the mixer: one document a row, in one pass, without any cleverness."""
    layer = model.model.layers[0]
    if isinstance(getattr(layer, "mixer", None), Sliding):
        return _attend_densely(model, layer.mixer, hidden_BTD)
    with prefer_reference():
        return mix(model, hidden_BTD)


@contextmanager
def prefer_reference() -> Iterator[None]:
    """Run every operator token by token for the time of a `with` block."""
    before = ",".join(f"{name}={form}" if name else form for name, form in forms._preferred.items())
    forms.prefer("reference")
    try:
        yield
    finally:
        forms.prefer(before or None)


def _attend_densely(model: HybridForCausalLM, mixer: Sliding, hidden_BTD: Tensor) -> Tensor:
    """Attend under a mask that asks of every pair of tokens whether one sees the other."""
    num_tokens = hidden_BTD.shape[1]
    mask_TT = torch.tensor(
        [
            [s <= t and (t - s < mixer.window or s < mixer.sinks) for s in range(num_tokens)]
            for t in range(num_tokens)
        ]
    )
    rope = model.model.rotary_emb(hidden_BTD, position_ids=torch.arange(num_tokens)[None])
    return mixer.attention(
        hidden_states=hidden_BTD, position_embeddings=rope, attention_mask=mask_TT[None, None]
    )[0]


def pack(documents: Sequence[Tensor], num_padding: int = 0) -> tuple[Tensor, Tensor]:
    """Put documents (T, D) behind each other in one row, with padding at the end."""
    hidden_TD = torch.cat(
        [*documents, 7 + documents[0].new_zeros(num_padding, documents[0].shape[1])]
    )
    numbers = [torch.full((len(one),), n + 1) for n, one in enumerate(documents)]
    return hidden_TD[None], torch.cat([*numbers, torch.zeros(num_padding, dtype=torch.long)])[None]


def pad_left(documents: Sequence[Tensor], fill: float = 7.0) -> tuple[Tensor, Tensor]:
    """Put each document (T, D) at the end of a row of its own; the mask is 0 in front."""
    longest = max(len(one) for one in documents)
    hidden_BTD = documents[0].new_full((len(documents), longest, documents[0].shape[1]), fill)
    mask_BT = torch.zeros(len(documents), longest, dtype=torch.long)
    for row, one in enumerate(documents):
        hidden_BTD[row, longest - len(one) :] = one
        mask_BT[row, longest - len(one) :] = 1
    return hidden_BTD, mask_BT
