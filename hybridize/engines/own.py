"""The engine of this package: its own server, for any layout, with nothing else installed."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridize import __version__
from hybridize.core.errors import ModelError
from hybridize.core.shape import ModelShape
from hybridize.engines.base import Command, ServeSettings


class Own:
    """`python -m hybridize.serving`: PyTorch, one process, requests computed together."""

    name = "hybridize"
    health_path = "/health"
    request_fields: Mapping[str, Any] = {"return_token_ids": True}

    def version(self) -> str | None:
        """Return the version of this package."""
        return __version__

    def why_not(self, model: Path) -> str | None:
        """Say what is wrong with the folder; any layout of a known family is served."""
        try:
            ModelShape.read(model)
        except ModelError as error:
            return str(error)
        return None

    def command(self, settings: ServeSettings) -> Command:
        """Return how to start the server; see `hybridize.serving`."""
        argv = [sys.executable, "-m", "hybridize.serving", str(settings.model)]
        options = {
            "--host": settings.host,
            "--port": settings.port,
            "--max-sequences": settings.max_sequences,
            "--context-tokens": settings.context_tokens,
            "--dtype": settings.dtype,
            "--threads": settings.threads,
            "--name": settings.name,
        }
        for option, value in options.items():
            if value is not None:
                argv += [option, str(value)]
        environment = {} if settings.api_key is None else {"HYBRIDIZE_API_KEY": settings.api_key}
        return Command(argv=tuple(argv), environment=environment)
