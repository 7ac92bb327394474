"""Convert layers and, if asked, calibrate the fresh mixers: the start of a stage and of a probe."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hybridize.core.layout import Layout
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.surgery.aligned import AlignedMixers
from hybridize.surgery.apply import convert
from hybridize.surgery.calibrate import calibrate, list_gated


@dataclass(frozen=True, kw_only=True)
class FreshSettings:
    """How a fresh mixer starts."""

    init: str = "from_attention"
    """from_attention: V -> x, K -> B, Q -> C, O -> out. random: nothing of the teacher's. aligned:
    a mixer that was trained before against the attention of its layer."""
    options: Mapping[str, Any] | None = None
    """Options of the mixer kind."""
    seed: int = 0
    """Seed of what is drawn at random."""
    aligned: Path | None = None
    """Folder of the mixers of init `aligned`."""

    @classmethod
    def of(
        cls,
        init: str | AlignedMixers,
        *,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> "FreshSettings":
        """Return a start by name, or from mixers that were aligned, with the options they have."""
        if isinstance(init, str):
            return cls(init=init, options=dict(options or {}), seed=seed)
        return cls(init="aligned", options=dict(init.options), aligned=init.folder)


def convert_fresh(
    model: HybridForCausalLM,
    layout: Layout,
    settings: FreshSettings,
    *,
    source: HybridForCausalLM,
    calibration: tuple[Tensor, Tensor] | None = None,
) -> HybridForCausalLM:
    """Return a new model with `layout`; layers converted before keep what they have learned.

    Args:
        source: the teacher, whose attention the fresh mixers start from.
        calibration: tokens (B, T) and their document numbers (B, T), on which the gates and output
            projections of the fresh mixers are fitted to the teacher's attention; None leaves them
            as initialised, and aligned ones are left as they are.

    Raises:
        ModelError: no weight map leads from the model's layout to this one.
    """
    student = convert(
        model,
        layout,
        init=settings.init,
        options=settings.options,
        seed=settings.seed,
        source=source,
        aligned=settings.aligned,
    )
    if calibration is not None and settings.init != "aligned":
        tokens_BT, segments_BT = calibration
        fresh = set(model.layout.diff(layout)) & set(list_gated(student, source))
        calibrate(student, source, tokens_BT, segments_BT, layers=sorted(fresh))
    return student
