"""The mixers that can stand in for attention: a table from kind to class.

Example:
    mixer = build_mixer("mamba2", shape, layer=3, options={"expand": 1})

Read `base` first (what a mixer gets and returns), then `mamba2`, then `mamba1`.
"""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from hybridize.core.errors import ModelError
from hybridize.models.mixers.base import Mixer, MixerContext, MixerShape, widen

MIXERS = {
    "gated_delta": "hybridize.models.mixers.gated_delta:GatedDelta",
    "identity": "hybridize.models.mixers.base:Identity",
    "mamba1": "hybridize.models.mixers.mamba1:Mamba1",
    "mamba2": "hybridize.models.mixers.mamba2:Mamba2",
    "sliding": "hybridize.models.mixers.sliding:Sliding",
}


def find_mixer(kind: str) -> type[Mixer]:
    """Return the class of a mixer kind, or of a plugin written `package.module:Name`.

    Raises:
        ModelError: the kind is not in the table, or the plugin cannot be imported or is no Mixer.
    """
    if kind not in MIXERS and ":" not in kind:
        near = get_close_matches(kind, MIXERS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ModelError(
            f"mixer {kind!r} is not known (known: {', '.join(MIXERS)}, or "
            f"package.module:Name).{hint}"
        )
    module, name = MIXERS.get(kind, kind).split(":", 1)
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"mixer {kind!r} cannot be imported: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, Mixer)):
        raise ModelError(f"mixer {kind!r} is not a subclass of hybridize.models.mixers.Mixer.")
    return found


def build_mixer(kind: str, shape: MixerShape, layer: int, options: Mapping[str, Any]) -> Mixer:
    """Make the mixer of one layer.

    Raises:
        ModelError: the kind or one of the options is not known, or a value does not fit the shape.
    """
    found = find_mixer(kind)
    known = list(inspect.signature(found).parameters)[2:]
    for name in options:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise ModelError(f"mixer {kind}: {name!r} is not an option (options: {listed}).")
    return found(shape, layer, **options)


__all__ = ["MIXERS", "Mixer", "MixerContext", "MixerShape", "build_mixer", "find_mixer", "widen"]
