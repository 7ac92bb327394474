"""What a serving engine is to the rest: Engine, ServeSettings and Command.

An engine is a program of its own, started as a process and spoken to over HTTP in the manner of
OpenAI's API. It may live in another Python environment: nothing here imports it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What is served, and how."""

    model: Path
    """Folder or file as the engine wants it; see `Engine.why_not`."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 0
    """Port to listen on; 0 takes a free one, which `serving` chooses before it asks `command`."""
    max_sequences: int = 8
    """Requests computed together; more wait."""
    context_tokens: int | None = None
    """Tokens, prompt and answer, that one request may have; None is what the model says."""
    dtype: str = "float32"
    """Of weights and activations: float32, bfloat16 or float16. A file with a type of its own, such
    as a quantized one, keeps it."""
    threads: int | None = None
    """Processor threads; None leaves the choice to the engine."""
    name: str = "model"
    """What requests call the model."""
    api_key: str | None = None
    """Key that requests must carry; None asks for none."""
    reuse_prefixes: bool = False
    """Whether work done for one request may be kept for another with the same beginning."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """How an engine is started."""

    argv: tuple[str, ...]
    """Program and arguments."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables to set beside those of this process."""


class Engine(Protocol):
    """One serving engine; its class takes no arguments, and asking it anything is cheap."""

    name: str
    """As `--engine` and the tables call it."""
    health_path: str
    """Path that answers 200 once requests are taken."""
    request_fields: Mapping[str, Any]
    """Fields beside OpenAI's own that each request gets, so that it is computed from scratch and
    the token ids of the answer come back, such as llama.cpp's `cache_prompt` and vLLM's
    `return_token_ids`."""

    def version(self) -> str | None:
        """Return the version found on this machine; None where the engine is not installed."""
        ...

    def why_not(self, model: Path) -> str | None:
        """Return one sentence why the engine cannot serve this folder or file here, or None."""
        ...

    def command(self, settings: ServeSettings) -> Command:
        """Return how to start the engine.

        Raises:
            MachineError: it is not installed.
            ModelError: it cannot serve the model as asked.
        """
        ...
