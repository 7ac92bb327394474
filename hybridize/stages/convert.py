"""Convert: replace the mixer of the layers in which a layout differs from the model's."""

from pathlib import Path

from torch import Tensor

from hybridize.core.artifacts import write_json
from hybridize.core.layout import Layout
from hybridize.models.model import Model
from hybridize.surgery.apply import plan_weights
from hybridize.surgery.fresh import FreshSettings, convert_fresh


def run(
    model: Model,
    layout: Layout,
    settings: FreshSettings,
    out: Path | None = None,
    *,
    source: Model,
    name: str,
    calibration: tuple[Tensor, Tensor] | None = None,
) -> Model:
    """Return a new model with `layout`; writes `out`/weight_map.json if given.

    Args:
        source: the teacher, whose attention the fresh mixers start from.
        calibration: tokens and document numbers to fit fresh mixers on; see `convert_fresh`.

    Raises:
        ModelError: no weight map leads from the model's layout to this one.
    """
    if out is not None:
        weights = plan_weights(
            model.network,
            layout,
            init=settings.init,
            options=settings.options,
            source=source.network,
        )
        write_json(out / "weight_map.json", weights.to_json())
    network = convert_fresh(
        model.network, layout, settings, source=source.network, calibration=calibration
    )
    return Model(name, network, model.tokenizer)
