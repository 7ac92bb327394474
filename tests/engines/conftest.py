"""An installed llama.cpp, or the reason why what needs it is skipped."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from hybridize.engines import Client, ServeSettings, find_engine, serving


@dataclass(frozen=True)
class LlamaCppRunner:
    """Serves GGUF files for a test."""

    engine: Any

    @contextmanager
    def serve(self, model, **settings):
        """Start the engine on a file, and yield a client of it."""
        asked = {"max_sequences": 4, "threads": 1, "context_tokens": 256} | settings
        with serving(self.engine, ServeSettings(model=model, **asked)) as server:
            yield Client(server.url, fields=self.engine.request_fields)


@pytest.fixture(scope="session")
def llama_cpp():
    """Return a runner of the llama.cpp that is installed."""
    pytest.importorskip("gguf", reason="the extra gguf is not installed: nothing to serve")
    engine = find_engine("llama.cpp")
    if engine.version() is None:
        pytest.skip("llama.cpp is not installed: what it computes of exports is not checked")
    return LlamaCppRunner(engine)
