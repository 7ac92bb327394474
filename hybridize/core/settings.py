"""The only file that reads environment variables; the table below is all of them.

| variable | meaning |
|---|---|
| HYBRIDIZE_DEVICE | device where none is named on the command line: cpu, mps, ... |
| HYBRIDIZE_THREADS | CPU threads that torch may use |
| HYBRIDIZE_FORMS | forms of operators to prefer: chunked, or ssd=chunked,causal_conv=reference |
| HYBRIDIZE_API_KEY | key that requests to `hybridize serve` must carry, and that `chat` sends |
| HYBRIDIZE_LLAMA_SERVER | path of llama.cpp's `llama-server`, where it is not on PATH |
| HYBRIDIZE_VLLM_PYTHON | Python that has vLLM, where it is not this one |
| NO_COLOR | any text but none: no colours in help and messages; `--no-color` sets it |
| RANK, WORLD_SIZE, LOCAL_RANK | set by torchrun: number of this process, of all, on its machine |
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from hybridize.core.errors import MachineError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the environment says."""

    device: str | None
    """Device to compute on; None means the best present."""
    threads: int | None
    """CPU threads; None leaves the choice to torch."""
    forms: str | None
    """Forms of operators to prefer; None leaves the choice to `hybridize.ops.forms`."""
    api_key: str | None = None
    """Key of requests to a server; None asks for none."""
    llama_server: str | None = None
    """Path of llama.cpp's server; None looks for it on PATH."""
    vllm_python: str | None = None
    """Python interpreter that has vLLM; None is this one."""
    rank: int = 0
    """Number of this process among those that torchrun started; the first writes and prints."""
    num_ranks: int = 1
    """Processes that torchrun started on all machines."""
    local_rank: int = 0
    """Number of this process on its machine."""


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the variables of the table above.

    Raises:
        MachineError: a variable that should hold a number holds something else.
    """
    values = os.environ if environment is None else environment
    return Settings(
        device=values.get("HYBRIDIZE_DEVICE") or None,
        threads=_number(values, "HYBRIDIZE_THREADS", minimum=1),
        forms=values.get("HYBRIDIZE_FORMS") or None,
        api_key=values.get("HYBRIDIZE_API_KEY") or None,
        llama_server=values.get("HYBRIDIZE_LLAMA_SERVER") or None,
        vllm_python=values.get("HYBRIDIZE_VLLM_PYTHON") or None,
        rank=_number(values, "RANK") or 0,
        num_ranks=_number(values, "WORLD_SIZE") or 1,
        local_rank=_number(values, "LOCAL_RANK") or 0,
    )


def make_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of this process with `changes`, for a process that it starts."""
    return {**os.environ, **changes}


def set_no_color() -> None:
    """Ask all that print in this process for no colours, as NO_COLOR asks."""
    os.environ["NO_COLOR"] = "1"


def _number(values: Mapping[str, str], name: str, minimum: int = 0) -> int | None:
    text = values.get(name)
    if not text:
        return None
    if not text.isdecimal() or int(text) < minimum:
        raise MachineError(
            f"environment variable {name} is {text!r}, not a whole number from {minimum} on. "
            f"Set it again or unset it."
        )
    return int(text)
