"""llama.cpp's `llama-quantize`, which makes types of weights that the package gguf cannot."""

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from hybridize.core.errors import MachineError
from hybridize.engines.llama_cpp import find_program

PROGRAM = "llama-quantize"
_LAST_LINES = 3


def find_quantizer() -> str | None:
    """Return the llama-quantize beside llama-server, or that on PATH; None where there is none."""
    server = find_program()
    beside = None if server is None else shutil.which(Path(server).with_name(PROGRAM))
    return beside or shutil.which(PROGRAM)


def need_quantizer(name: str) -> str:
    """Return the path of llama-quantize.

    Args:
        name: of the type that is asked for.

    Raises:
        MachineError: there is none.
    """
    found = find_quantizer()
    if found is None:
        raise MachineError(
            f"weights in {name} are made by llama.cpp's {PROGRAM}, which is not beside "
            "llama-server (HYBRIDIZE_LLAMA_SERVER) nor on PATH: build it with llama-server "
            "(docs/llama-cpp.md), or use q8_0, q5_1, q5_0, q4_1 or q4_0, which need it not."
        )
    return found


def quantize_file(source: Path, out: Path, name: str, *, kept: Iterable[str], fine: str) -> None:
    """Write a GGUF file anew in another type.

    Args:
        source: file whose matrices are not quantised yet.
        out: file to write.
        name: of the type, as llama.cpp spells it.
        kept: regular expressions of tensors that get the type `fine` in its place.
        fine: llama.cpp's name of that type.

    Raises:
        MachineError: there is no llama-quantize, or it fails.
    """
    options = [part for tensor in kept for part in ("--tensor-type", f"{tensor}={fine}")]
    named = ["--token-embedding-type", fine, "--output-tensor-type", fine]
    argv = [need_quantizer(name), *named, *options, str(source), str(out), name]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise MachineError(f"{PROGRAM} could not make {name}: {' / '.join(lines[-_LAST_LINES:])}")
