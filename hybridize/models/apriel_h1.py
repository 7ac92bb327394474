"""Read the configuration of published Apriel-H1 checkpoints, whose tensors already have our names.

The checkpoints hold Mistral layers and a Mamba mixer called "m2" (arXiv 2511.02651). They were
trained with values and keys repeated in groups of the state size, and with the bias of the step
size applied twice, so both are set here. Their class name changed between releases; the two keys
that are read here did not.
"""

from collections.abc import Mapping
from typing import Any

from hybridize.core.errors import ModelError
from hybridize.models.families import find_family
from hybridize.models.hybrid import HybridConfig

_MIXERS = {"t": "attention", "m2": "mamba1", "i": "identity"}


def is_apriel_h1(values: Mapping[str, Any]) -> bool:
    """Tell whether the values of a config.json are those of an Apriel-H1 checkpoint."""
    return "hybrid_block_layout" in values and "ssm_cfg" in values


def read_apriel_h1(values: Mapping[str, Any], place: str) -> HybridConfig:
    """Return the configuration that holds the same model.

    Args:
        values: of config.json.
        place: where they were read, for the error.

    Raises:
        ModelError: the layout names a mixer that the published models do not have.
    """
    layout, state_space = values["hybrid_block_layout"], values["ssm_cfg"]
    foreign = sorted(set(layout) - set(_MIXERS))
    if foreign:
        raise ModelError(
            f"model {place}: the layout names {', '.join(foreign)}, but only "
            f"{', '.join(_MIXERS)} of Apriel-H1 can be loaded."
        )
    options = {
        "state_size": state_space["d_state"],
        "conv_width": state_space["d_conv"],
        "repeat": "state",
        "dt_bias": "twice",
    }
    own = {"hybrid_block_layout", "ssm_cfg", "model_type", "architectures", "auto_map"}
    shared = {name: value for name, value in values.items() if name not in own}
    return HybridConfig(
        teacher=find_family("mistral").config(**shared),
        mixers=[_MIXERS[code] for code in layout],
        mixer_options={"mamba1": options},
    )
