"""Convert: replace the mixer of the layers in which a layout differs from the model's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridize.core.artifacts import write_json
from hybridize.core.layout import Layout
from hybridize.models.model import Model
from hybridize.surgery.apply import convert, plan_weights


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """How a fresh mixer starts."""

    init: str = "from_attention"
    """from_attention: V -> x, K -> B, Q -> C, O -> out. random: nothing of the teacher's."""
    options: dict[str, Any] | None = None
    """Options of the mixer kind."""
    seed: int = 0
    """Seed of what is drawn at random."""


def run(
    model: Model,
    layout: Layout,
    settings: ConvertSettings,
    out: Path | None = None,
    *,
    source: Model,
    name: str,
) -> Model:
    """Return a new model with `layout`; layers converted before keep what they have learned.

    Args:
        source: the teacher, whose attention the fresh mixers start from.

    Raises:
        ModelError: no weight map leads from the model's layout to this one.
    """
    how = {"init": settings.init, "options": settings.options, "source": source.network}
    if out is not None:
        weights = plan_weights(model.network, layout, **how)
        write_json(out / "weight_map.json", weights.to_json())
    network = convert(model.network, layout, seed=settings.seed, **how)
    return Model(name, network, model.tokenizer)
