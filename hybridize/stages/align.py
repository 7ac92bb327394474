"""Align: train the candidate mixer of every layer against that layer's attention in the teacher.

Legend: B rows, T tokens, N tokens that are not padding, D model width.

Each mixer sees the input that the attention of its layer has in the teacher, and learns the output
that the attention gives there. No mixer sees what another one makes, so all layers train in one
pass over the text, the teacher running once a batch, and each comes out as if it had trained alone.
This is the first step of several published conversions, at some 100M tokens: RADLADS (arXiv
2505.03005, step 1), MOHAWK (arXiv 2408.10189, hidden-state alignment).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybridize.core.errors import ModelError
from hybridize.models.mixers import Mixer, MixerContext
from hybridize.models.model import Model
from hybridize.surgery.aligned import AlignedMixers, LayerError
from hybridize.surgery.fresh import FreshSettings, convert_fresh
from hybridize.training.data import Batch, TokenSource
from hybridize.training.loop import FitResult, FitSettings, Heldout, fit
from hybridize.training.metrics import Progress
from hybridize.training.objectives import LossSum

SMALLEST = 1e-6
"""Least length of an attention's output that a difference is divided by."""


@dataclass(frozen=True, kw_only=True)
class AlignSettings:
    """Which mixer is aligned and how it is trained."""

    training: FitSettings
    """Budget, optimizer, schedule; `grad_clip` would join the layers, and must be None."""
    mixer: str = "mamba2"
    """Kind of the mixer."""
    fresh: FreshSettings = field(default_factory=FreshSettings)
    """How it starts."""
    layers: tuple[int, ...] | None = None
    """Layers that get one; None is every layer in which the teacher has attention."""
    heldout_tokens: int = 16_384
    """Held-out tokens the errors are measured on."""

    def __post_init__(self) -> None:
        assert self.training.grad_clip is None, "a clip of all gradients would join the layers"


def run(
    teacher: Model,
    data: TokenSource,
    settings: AlignSettings,
    out: Path,
    *,
    heldout: TokenSource | None = None,
    calibration: tuple[Tensor, Tensor] | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> tuple[AlignedMixers, FitResult]:
    """Train one mixer for each layer; write them, metrics and checkpoints under `out`.

    Args:
        calibration: see `convert_fresh`.

    Raises:
        ModelError: a layer has no attention, or the mixer nothing to train.
        RunError: a loss is not finite, or a checkpoint does not fit.
        Interrupted: on SIGINT, SIGTERM or `stop`, after the step and a checkpoint.
    """
    candidates = make_candidates(teacher, settings, calibration)
    measured = None
    if heldout is not None:
        errors = Alignment(teacher.network, by_layer=True)
        measured = Heldout(source=heldout, tokens=settings.heldout_tokens, objective=errors)
    fitted = fit(
        candidates,
        Alignment(teacher.network),
        data,
        settings.training,
        out,
        heldout=measured,
        progress=progress,
        stop=stop,
    )
    before, after = fitted.heldout_before or {}, fitted.heldout or {}
    names = {layer: _name(layer) for layer in candidates.mixers}
    aligned = AlignedMixers(
        folder=out,
        kind=settings.mixer,
        options=dict(settings.fresh.options or {}),
        errors=tuple(
            LayerError(layer=layer, before=before.get(name), after=after.get(name))
            for layer, name in names.items()
        ),
    )
    aligned.save(candidates.mixers)
    return aligned, fitted


class Candidates(nn.Module):
    """The mixers that are aligned, each by its layer."""

    def __init__(self, mixers: Mapping[int, Mixer]) -> None:
        super().__init__()
        self.by_name = nn.ModuleDict({_name(layer): mixer for layer, mixer in mixers.items()})
        self._layers = tuple(mixers)

    @property
    def mixers(self) -> dict[int, Mixer]:
        """Map each layer to its mixer, in the order of layers."""
        return dict(zip(self._layers, self.by_name.values(), strict=True))  # type: ignore[arg-type]


class Alignment:
    """The distance of each mixer's output from the attention's, token by token.

    The loss is its square, because that is what the residual stream gets, added up over layers and
    over all tokens that are not padding, prompts too: layers share no weight, so none outweighs
    another. What is told is the distance by the length of the attention's output.
    """

    def __init__(self, teacher: nn.Module, *, by_layer: bool = False) -> None:
        """Align to a teacher, a `HybridForCausalLM`; `by_layer` tells the layers apart."""
        self.teacher: Any = teacher.eval()
        self.by_layer = by_layer
        self.identity = {"loss": {"squared_distance": 1.0}}

    def count(self, rows: Batch) -> int:
        """Count the tokens that are not padding."""
        return int((rows.segments_BT != 0).sum())

    def __call__(self, model: Any, rows: Batch) -> LossSum:
        """Return the errors of the candidates on a batch; the teacher runs once, ungraded."""
        mixers = model.mixers
        real_BT = rows.segments_BT != 0
        squares: dict[int, Tensor] = {}
        errors: dict[int, Tensor] = {}
        training = torch.is_grad_enabled()

        def compare(layer: int, normed_BTD: Tensor, ctx: MixerContext, wanted_BTD: Tensor) -> None:
            with torch.set_grad_enabled(training):
                found_BTD = mixers[layer](normed_BTD, ctx)
                difference_ND = found_BTD[real_BT].float() - wanted_BTD[real_BT].float()
                squares[layer] = difference_ND.square().sum()
            lengths_N = wanted_BTD[real_BT].float().norm(dim=-1).clamp_min(SMALLEST)
            errors[layer] = (difference_ND.detach().norm(dim=-1) / lengths_N).sum()

        with torch.no_grad(), _listening(self.teacher.model.layers, mixers, compare):
            self.teacher.hidden(rows.input_ids_BT, segments=rows.segments_BT)
        total = torch.stack(list(squares.values())).sum()
        parts = {"mixer_error": torch.stack(list(errors.values())).mean()}
        if self.by_layer:
            parts = {_name(layer): error for layer, error in errors.items()}
        return LossSum(total, self.count(rows), parts)


@contextmanager
def _listening(
    blocks: nn.ModuleList,
    layers: Collection[int],
    tell: Callable[[int, Tensor, MixerContext, Tensor], None],
) -> Iterator[None]:
    """Tell what the mixers of some layers get and make, for the time of a `with` block.

    Args:
        tell: called with the layer, its normed input, its context and what its mixer makes.
    """
    listened: list[Any] = [blocks[layer] for layer in layers]

    def listen(layer: int, mix: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def mix_and_tell(normed_BTD: Tensor, ctx: MixerContext) -> Tensor:
            mixed_BTD = mix(normed_BTD, ctx)
            tell(layer, normed_BTD, ctx, mixed_BTD)
            return mixed_BTD

        return mix_and_tell

    for layer, block in zip(layers, listened, strict=True):
        block.mix = listen(layer, block.mix)
    try:
        yield
    finally:
        for block in listened:
            del block.mix


def make_candidates(
    teacher: Model,
    settings: AlignSettings,
    calibration: tuple[Tensor, Tensor] | None = None,
) -> Candidates:
    """Make the mixers as they start: what converting these layers would put there.

    Raises:
        ModelError: a layer has no attention, or the mixer nothing to train.
    """
    free = teacher.layout.layers("attention")
    chosen = free if settings.layers is None else tuple(sorted(set(settings.layers)))
    missing = [layer for layer in chosen if layer not in free]
    if missing or not chosen:
        there = ", ".join(map(str, free)) or "none"
        raise ModelError(
            f"{teacher.name} has no attention in layer {', '.join(map(str, missing)) or 'any'} "
            f"to align a mixer to. Choose among its layers with attention: {there}."
        )
    student = convert_fresh(
        teacher.network,
        teacher.layout.convert(chosen, to=settings.mixer),
        settings.fresh,
        source=teacher.network,
        calibration=calibration,
    )
    mixers = {layer: student.model.layers[layer].mixer for layer in chosen}
    if not any(True for mixer in mixers.values() for _ in mixer.parameters()):
        raise ModelError(
            f"mixer {settings.mixer} has nothing to train, so it cannot be aligned. "
            "Set mixer.init to from_attention."
        )
    return Candidates(mixers)


def _name(layer: int) -> str:
    return f"layer-{layer:02d}"
