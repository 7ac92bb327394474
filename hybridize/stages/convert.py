"""Convert: replace the mixer of the layers in which a layout differs from the model's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridize.core.artifacts import write_json
from hybridize.core.layout import Layout
from hybridize.core.quantities import parse_bytes
from hybridize.models.folders import find_folder
from hybridize.models.loading import load_outline
from hybridize.models.model import Model
from hybridize.surgery.apply import plan_weights
from hybridize.surgery.fresh import FreshSettings, convert_fresh
from hybridize.surgery.stream import SHARD_BYTES, Progress, stream


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


def convert_folder(
    folder: Path | str,
    layout: Layout,
    out: Path | str,
    *,
    source: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    shard_size: str | int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Path:
    """Convert a model folder into another tensor by tensor, in the memory of one file of weights.

    The result is, bit for bit, that of loading the folder, `convert` and saving.

    Args:
        source: the teacher, whose attention the fresh mixers start from; by default `folder`.
        settings: `init`, `options` and `seed`, as `convert` has them.
        dtype: float32 or bfloat16; None keeps that of the folder.
        shard_size: largest file to write, such as "4GiB"; a larger tensor has one of its own.
        progress: called with the bytes written and the bytes in all.

    Raises:
        ModelError: a folder is damaged, or no weight map leads from its layout to this one.
        MachineError: there is no room for the student.
    """
    stream(
        folder,
        layout,
        FreshSettings(**dict(settings or {})),
        out,
        source=source,
        dtype=None if dtype is None else getattr(torch, dtype),
        shard_bytes=parse_bytes(shard_size),
        progress=progress,
    )
    return Path(out)


def read_layout(folder: Path | str) -> Layout:
    """Read which mixer sits in each layer of a folder, a hub id or "shipped", and no weights."""
    return load_outline(find_folder(folder)).layout
