"""Turn a pretrained transformer into a hybrid of attention and SSM layers by staged distillation.

    import hybridize as hz

    recipe = hz.load_recipe("h12.yaml")
    print(hz.Layout.uniform(12).convert([3, 7], to="mamba2"))

Public names are imported on first use, so that `import hybridize` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "Importance": "hybridize.core.importance",
    "Interrupted": "hybridize.core.errors",
    "Layout": "hybridize.core.layout",
    "MachineError": "hybridize.core.errors",
    "ModelError": "hybridize.core.errors",
    "ModelShape": "hybridize.core.shape",
    "Plan": "hybridize.core.plan",
    "Recipe": "hybridize.core.recipe",
    "RecipeError": "hybridize.core.errors",
    "RunError": "hybridize.core.errors",
    "load_recipe": "hybridize.core.recipe",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'hybridize' has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
