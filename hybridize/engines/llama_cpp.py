"""llama.cpp: its own `llama-server`, or the one inside the Python package xllamacpp.

Its threads wait for each other at every operation by spinning, so that one more thread than there
are free cores makes it many times slower; by default it gets the cores that are free as it starts.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from hybridize.core.errors import MachineError, ModelError
from hybridize.core.gguf_header import get_size, read_gguf_header
from hybridize.core.settings import read_settings
from hybridize.engines.base import Command, ServeSettings

PROGRAM, PACKAGE = "llama-server", "xllamacpp"
_DEFAULT_CONTEXT = 4096


class LlamaCpp:
    """`llama-server` on GGUF files, with a cache of its own for each sequence."""

    name = "llama.cpp"
    health_path = "/health"
    request_fields: Mapping[str, Any] = {"cache_prompt": False}

    def version(self) -> str | None:
        """Return the version of llama-server, or of xllamacpp; None where there is neither."""
        program = find_program()
        if program is None:
            return find_package_version()
        return read_version(program)

    def why_not(self, model: Path) -> str | None:
        """Say what stands in the way: no llama.cpp, or no readable GGUF file."""
        if self.version() is None:
            return (
                "llama.cpp is not installed: put llama-server on PATH, set "
                "HYBRIDIZE_LLAMA_SERVER to its path, or pip install xllamacpp."
            )
        try:
            read_gguf_header(find_file(model))
        except ModelError as error:
            return str(error)
        return None

    def command(self, settings: ServeSettings) -> Command:
        """Return how to start the server.

        With `dtype` float32 keys and values are kept in float32 and attention is computed as
        written; any other keeps them in float16 with flash attention where the build has it.

        Raises:
            MachineError: llama.cpp is not installed.
            ModelError: there is no GGUF file.
        """
        if self.version() is None:
            raise MachineError(f"engine llama.cpp: {self.why_not(settings.model)}")
        program = find_program()
        start = (sys.executable, "-m", "hybridize.engines.llama_cpp_package")
        argv = [*((program,) if program else start), *list_options(settings)]
        names = () if settings.api_key is None else ("LLAMA_API_KEY", "HYBRIDIZE_API_KEY")
        environment = {name: str(settings.api_key) for name in names}
        return Command(argv=tuple(argv), environment=environment)


def list_options(settings: ServeSettings) -> list[str]:
    """Return the options of llama-server, which `llama_cpp_package` takes as well.

    Raises:
        ModelError: there is no GGUF file.
    """
    file, exact = find_file(settings.model), settings.dtype == "float32"
    tokens = settings.context_tokens or get_size(read_gguf_header(file), "context_length")
    threads = settings.threads or count_free_cores()
    options = {
        "--model": file,
        "--alias": settings.name,
        "--host": settings.host,
        "--port": settings.port,
        "--parallel": settings.max_sequences,
        "--ctx-size": (tokens or _DEFAULT_CONTEXT) * settings.max_sequences,
        "--threads": threads,
        "--threads-batch": threads,
        "--cache-type-k": "f32" if exact else "f16",
        "--cache-type-v": "f32" if exact else "f16",
        "--flash-attn": "off" if exact else "auto",
        "--reasoning-format": "none",
    }
    if not settings.reuse_prefixes:
        options |= {"--cache-ram": 0, "--ctx-checkpoints": 0}
    flags = ["--no-ui", "--metrics", "--no-kv-unified", "--jinja"]
    if not settings.reuse_prefixes:
        flags.append("--no-cache-prompt")
    return [*(str(part) for pair in options.items() for part in pair), *flags]


def find_file(model: Path) -> Path:
    """Return the GGUF file that a path names, or the only one in a folder.

    Raises:
        ModelError: there is none, or there are several.
    """
    if not model.is_dir():
        if model.is_file():
            return model
        raise ModelError(f"{model} does not exist. Check the path.")
    files = sorted(model.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        raise ModelError(
            f"{model} has {len(files)} GGUF files: name one of {', '.join(f.name for f in files)}."
        )
    raise ModelError(
        f"{model} has no GGUF file, and llama.cpp reads no other. "
        f"Write one: hybridize export {model} OUT --format gguf."
    )


def find_program() -> str | None:
    """Return the llama-server that the settings name, or that on PATH; None where there is none."""
    named = read_settings().llama_server
    return shutil.which(named) if named else shutil.which(PROGRAM)


def find_package_version() -> str | None:
    """Return the version of xllamacpp in this Python; None where it is not installed."""
    try:
        return f"{PACKAGE} {metadata.version(PACKAGE)}"
    except metadata.PackageNotFoundError:
        return None


@cache
def read_version(program: str) -> str | None:
    """Return what a llama-server says of its version; None where it does not run."""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"version:\s*(.+)", done.stderr + done.stdout)
    return f"{PROGRAM} {found[1].strip()}" if found else PROGRAM


def count_free_cores() -> int:
    """Return the cores this process may use, less those that were busy in the last minute."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, (usable or 1) - round(busy))
