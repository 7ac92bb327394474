"""The configuration of a student that a published Apriel-H1 checkpoint is.

The tensors already have our names; `hybridize.core.apriel_h1` says what they mean. A model that was
read this way remembers in `config.published` how it was written, so that it can be exported as it
was: the values of its config.json, the type of each tensor, and whether in_proj held the step size.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hybridize.core.apriel_h1 import Translation, translate
from hybridize.core.limits import check_counts, check_sizes
from hybridize.core.model_files import TensorPlace
from hybridize.models.families import find_family
from hybridize.models.hybrid import HybridConfig

FORMAT = "apriel-h1"


def read_apriel_h1(
    values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None, place: str
) -> Translation:
    """Check the sizes of a published config.json, and translate it; raises like `translate`."""
    check_sizes(values, place)
    # Layers that are left out have no tensors to count.
    counted = {name: value for name, value in values.items() if name != "num_hidden_layers"}
    check_counts(counted, shapes or {}, place)
    translation = translate(values, shapes, place)
    check_sizes(translation.teacher, place)
    return translation


def make_config(
    translation: Translation, values: Mapping[str, Any], tensors: Mapping[str, TensorPlace]
) -> HybridConfig:
    """Return the configuration of the student that a published checkpoint is.

    Args:
        translation: of `values` and the tensors.
        values: of its config.json.
        tensors: of its files; empty where they are not at hand.
    """
    dtypes = {name: place.dtype for name, place in tensors.items()}
    usual = Counter(dtypes.values()).most_common(1)[0][0] if dtypes else None
    return HybridConfig(
        teacher=find_family("mistral").config(**translation.teacher),
        mixers=translation.mixers,
        mixer_options=translation.mixer_options,
        published={
            "format": FORMAT,
            "config": dict(values),
            "dtype": usual,
            "dtypes": {name: dtype for name, dtype in dtypes.items() if dtype != usual},
            "joint_step": bool(translation.rows),
        },
    )
