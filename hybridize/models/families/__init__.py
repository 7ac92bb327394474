"""The families of teachers that can be converted: a table from `model_type` to their parts.

A family is one file with one `Family`; adding one is that file and a line here.
"""

from importlib import import_module

from hybridize.core.errors import ModelError
from hybridize.models.families.base import Family

FAMILIES = {
    "llama": "hybridize.models.families.llama:LLAMA",
    "mistral": "hybridize.models.families.mistral:MISTRAL",
    "qwen2": "hybridize.models.families.qwen2:QWEN2",
    "qwen3": "hybridize.models.families.qwen3:QWEN3",
    "smollm3": "hybridize.models.families.smollm3:SMOLLM3",
    "granite": "hybridize.models.families.granite:GRANITE",
    "olmo2": "hybridize.models.families.olmo2:OLMO2",
    "phi3": "hybridize.models.families.phi3:PHI3",
}


def find_family(name: str, place: str = "teacher") -> Family:
    """Return the family with this `model_type`.

    Args:
        name: the `model_type` of a configuration.
        place: where the name was read, for the error.

    Raises:
        ModelError: the family is not in the table.
    """
    if name not in FAMILIES:
        raise ModelError(
            f"model {place}: {name!r} is not a known family (known: {', '.join(FAMILIES)}). "
            "Use a teacher of a known family, or add a table for it (docs/families.md)."
        )
    module, attribute = FAMILIES[name].split(":")
    return getattr(import_module(module), attribute)


__all__ = ["FAMILIES", "Family", "find_family"]
