"""Which engine serves a model here, in which format, and why not the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from hybridize.core.errors import HybridizeError, MachineError, ModelError
from hybridize.core.exports import check_fit
from hybridize.core.model_files import read_config
from hybridize.engines import ENGINES, find_engine
from hybridize.engines.base import Engine

ACCELERATORS = ("/dev/nvidia0", "/dev/kfd")
"""Device files of GPUs that vLLM has kernels for."""
WRITTEN_FOR = {"llama.cpp": "gguf", "vllm": "stock"}
"""Engine -> format that a model folder is written in for it, where it cannot read the folder."""

NEEDED = {"gguf": ("gguf",)}
"""Format -> packages its writer needs, which are extras of their own names."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An engine for a model."""

    engine: Engine
    format: str | None
    """Format to write the model in first; None where the engine reads it as it is."""
    why: str
    """Why this engine, in one sentence."""
    passed_over: dict[str, str]
    """Engine that comes before it -> why it was passed over."""


def choose_engine(
    model: Path, asked: str | None = None, *, excluded: Mapping[str, str] | None = None
) -> Choice:
    """Choose the engine for a model folder or file.

    Without a GPU llama.cpp comes first, which starts in a second and is the fastest there; with
    one, vLLM does. This package's own server comes last, and takes every layout.

    Args:
        model: folder or GGUF file.
        asked: name of an engine, which must then serve the model; None chooses.
        excluded: engines found not to serve it, each with the reason.

    Raises:
        RecipeError: there is no such engine.
        MachineError: the asked engine is not installed.
        ModelError: no engine, or not the asked one, can serve the model.
    """
    if asked is not None:
        engine = find_engine(asked)
        format_, reason = find_way(engine, model)
        if reason is not None:
            error: type[HybridizeError] = MachineError if engine.version() is None else ModelError
            raise error(f"engine {asked}: {reason}")
        return Choice(engine=engine, format=format_, why="it was asked for", passed_over={})
    has_accelerator = any(Path(device).exists() for device in ACCELERATORS)
    names = list(ENGINES) if has_accelerator else sorted(ENGINES, key=_by_processor)
    passed_over: dict[str, str] = {}
    for name in names:
        engine = find_engine(name)
        format_, reason = find_way(engine, model)
        reason = (excluded or {}).get(name, reason)
        if reason is None:
            where = "with a GPU" if has_accelerator else "without a GPU"
            why = f"the first of {', '.join(names)} ({where}) that is installed and serves it"
            return Choice(engine=engine, format=format_, why=why, passed_over=passed_over)
        passed_over[name] = reason
    told = " ".join(f"{name}: {reason}" for name, reason in passed_over.items())
    raise ModelError(f"no engine serves {model}. {told}")


def find_way(engine: Engine, model: Path) -> tuple[str | None, str | None]:
    """Return the format to write a model in for an engine, or None; and why it cannot serve it."""
    reason = engine.why_not(model)
    wanted = WRITTEN_FOR.get(engine.name)
    if reason is None or wanted is None or engine.version() is None or not model.is_dir():
        return None, reason
    try:
        misfits = check_fit(read_config(model), wanted)
    except ModelError:
        return None, reason
    missing = [name for name in NEEDED.get(wanted, ()) if find_spec(name) is None]
    if missing:
        return None, f"{reason} Writing it needs: pip install 'hybridize[{missing[0]}]'."
    if misfits:
        return None, f"{reason} It cannot be written as {wanted} either: {'; '.join(misfits)}."
    return wanted, None


def _by_processor(name: str) -> int:
    """Order engines for a machine without a GPU."""
    return ("llama.cpp", "vllm", "hybridize").index(name)
