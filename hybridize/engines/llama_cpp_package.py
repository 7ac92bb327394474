"""The server inside the Python package xllamacpp, started as llama-server is.

`python -m hybridize.engines.llama_cpp_package --model model.gguf --port 8000 ...`
"""

import argparse
import os
import signal
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from hybridize.core.settings import read_settings

_CACHE_TYPES = {"f32": "GGML_TYPE_F32", "f16": "GGML_TYPE_F16"}
_FLASH = {"off": "LLAMA_FLASH_ATTN_TYPE_DISABLED", "auto": "LLAMA_FLASH_ATTN_TYPE_AUTO"}


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until asked to end."""
    package: Any = import_module("xllamacpp")
    options = make_parser().parse_args(argv)
    server = package.Server(fill_parameters(package, options))
    print(f"listening on {server.listening_address}", flush=True)  # noqa: T201  the server's log
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    # The package's own threads outlive the interpreter's end, and abort it.
    os._exit(0)


def make_parser() -> argparse.ArgumentParser:
    """Return a parser of those options of llama-server that `llama_cpp` passes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    for name, default in {"--alias": "model", "--host": "127.0.0.1"}.items():
        parser.add_argument(name, default=default)
    for name in ("--port", "--parallel", "--ctx-size", "--threads", "--threads-batch"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--cache-ram", "--ctx-checkpoints"):
        parser.add_argument(name, type=int)
    for name in ("--cache-type-k", "--cache-type-v"):
        parser.add_argument(name, choices=tuple(_CACHE_TYPES), default="f16")
    parser.add_argument("--flash-attn", choices=tuple(_FLASH), default="auto")
    parser.add_argument("--reasoning-format", choices=("none",), default="none")
    for name in ("--no-ui", "--metrics", "--no-kv-unified", "--jinja", "--no-cache-prompt"):
        parser.add_argument(name, action="store_true")
    return parser


def fill_parameters(package: Any, options: argparse.Namespace) -> Any:
    """Return the package's own parameters as the options say."""
    made = package.CommonParams()
    made.model.path = options.model
    made.model_alias = {options.alias}
    made.hostnames, made.port = [options.host], options.port
    made.n_parallel, made.n_ctx = options.parallel, options.ctx_size
    made.cpuparams.n_threads = options.threads
    made.cpuparams_batch.n_threads = options.threads_batch
    made.cache_type_k = getattr(package.ggml_type, _CACHE_TYPES[options.cache_type_k])
    made.cache_type_v = getattr(package.ggml_type, _CACHE_TYPES[options.cache_type_v])
    made.flash_attn_type = getattr(package.llama_flash_attn_type, _FLASH[options.flash_attn])
    made.reasoning_format = package.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    made.endpoint_metrics, made.ui, made.kv_unified = True, False, False
    made.use_jinja = True
    made.cache_prompt = not options.no_cache_prompt
    if options.cache_ram is not None:
        made.cache_ram_mib = options.cache_ram
    if options.ctx_checkpoints is not None:
        made.n_ctx_checkpoints = options.ctx_checkpoints
    key = read_settings().api_key
    if key is not None:
        made.api_keys = [key]
    return made


if __name__ == "__main__":
    main()
