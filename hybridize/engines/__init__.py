"""Serving engines: found, started as processes, spoken to over HTTP; no torch, no engine imported.

    engine = find_engine("llama.cpp")
    with serving(engine, ServeSettings(model=Path("out/h7.gguf"), port=8000)) as server:
        print(Client(server.url).complete("recall :", Sampling(max_tokens=20)).text)

Order of reading: base (what an engine is), server (starting one), client (speaking to one).
"""

from importlib import import_module

from hybridize.core.catalog import did_you_mean
from hybridize.core.errors import RecipeError
from hybridize.engines.answers import Completion, Piece
from hybridize.engines.base import Command, Engine, ServeSettings
from hybridize.engines.client import Client, Sampling
from hybridize.engines.server import Server, serving

ENGINES = {
    "vllm": "hybridize.engines.vllm:Vllm",
    "llama.cpp": "hybridize.engines.llama_cpp:LlamaCpp",
    "hybridize": "hybridize.engines.own:Own",
}
"""Name -> "module:class"; the order is that of preference where none is named."""


def find_engine(name: str) -> Engine:
    """Return the engine of this name.

    Raises:
        RecipeError: there is no such engine.
    """
    if name not in ENGINES:
        hint = did_you_mean(name, list(ENGINES))
        raise RecipeError(f"{name!r} is not an engine. {hint}Known: {', '.join(ENGINES)}.")
    module, _, attribute = ENGINES[name].partition(":")
    engine: Engine = getattr(import_module(module), attribute)()
    return engine


__all__ = [
    "ENGINES",
    "Client",
    "Command",
    "Completion",
    "Engine",
    "Piece",
    "Sampling",
    "ServeSettings",
    "Server",
    "find_engine",
    "serving",
]
