"""Tell transformers the names of our models without importing it, or torch, or the models.

`import hybridize` calls `announce`. If transformers' table of configurations is loaded already, a
stand-in for each name is put there at once; if not, as soon as it is. A stand-in imports
`hybridize.models` when a model of its name is first asked for. A config.json that has what only
Apriel-H1 has is read under one of its names, whichever it tells: as the Mistral that some of them
say they are, transformers would make them with attention at random.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:  # at run time it would slow every start
    from importlib.abc import Loader

TABLE = "transformers.models.auto.configuration_auto"
_READER = "PreTrainedConfig"
"""Name in the table of the class that reads config.json."""
APRIEL_H1 = ("apriel_ssm_thinker_hybrid", "apriel_hybrid_ssm", "apriel_h", "apriel_h1")
"""The model_type of published Apriel-H1: of training exports, of Fast-LLM, and of releases."""
NAMES = ("hybridize", *APRIEL_H1)
"""Values of model_type in config.json."""
APRIEL_H1_KEYS = frozenset({"hybrid_block_layout", "ssm_cfg"})
"""Keys of config.json that Apriel-H1 has, and no model of transformers."""


def announce() -> None:
    """Make AutoConfig and AutoModelForCausalLM load our models, now or once they are imported."""
    if TABLE in sys.modules:
        _register(sys.modules[TABLE])
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def _register(table: ModuleType) -> None:
    known = table.CONFIG_MAPPING
    for name in NAMES:
        if name not in known:
            known.register(name, _stand_in(name))
    reader = getattr(table, _READER, None)
    if reader is not None and not isinstance(reader, _Reader):
        setattr(table, _READER, _Reader(reader))


class _Reader:
    """Stands for the class that reads config.json in the table, and tells Apriel-H1 by its keys."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, self._real)

    def __subclasscheck__(self, kind: type) -> bool:
        return issubclass(kind, self._real)

    def get_config_dict(self, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the values of a config.json, and the arguments that are for others."""
        values, rest = self._real.get_config_dict(*args, **kwargs)
        if values.keys() >= APRIEL_H1_KEYS and values.get("model_type") not in NAMES:
            values = {**values, "model_type": APRIEL_H1[0]}
        return values, rest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _stand_in(name: str) -> type:
    """Make the class that AutoConfig finds under `name`."""

    class StandIn:
        """Reads a configuration with the class that takes its place."""

        model_type = name

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            """Read the values of a config.json."""
            import_module("hybridize.models")
            return sys.modules[TABLE].CONFIG_MAPPING[name].from_dict(config_dict, **kwargs)

    return StandIn


class _Watch:
    """Waits on `sys.meta_path` for the import of the table, and registers in it when loaded."""

    _looking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Leave finding to the others, and wrap the loader of the one module."""
        if fullname != TABLE or self._looking:
            return None
        from importlib.util import find_spec  # not at the top: it would slow every start

        self._looking = True
        try:
            spec = find_spec(fullname)
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Loader", _ThenRegister(spec.loader))
        return spec


class _ThenRegister:
    """The loader of the table, which registers our names afterwards."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Make the module as the real loader does."""
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        """Load the module, and register in it."""
        self._loader.exec_module(module)
        _register(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
