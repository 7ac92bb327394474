"""Compiled forms: C++ that is built on demand with the system's compiler and called by ctypes.

A kernel is one file `kernel.cpp` in the operator's folder; with `native.hpp` it needs nothing but a
C++17 compiler, takes about two seconds to build, and is built once per user, compiler and
processor. Without a compiler nothing breaks: `find_obstacle` says why, and another form runs.

A kernel exports `<name>_float` and `<name>_double`, functions of one pointer to a struct whose
members are all eight bytes wide: pointers, whole numbers and doubles.
"""

import ctypes
import hashlib
import platform
import shutil
import struct
import subprocess
import tempfile
from array import array
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HEADER = Path(__file__).with_name("native.hpp")
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread")
SECONDS_TO_BUILD = 180
DTYPES = {torch.float32: "float", torch.float64: "double"}


class BuildError(Exception):
    """A kernel cannot be built or loaded here; the message is half a sentence."""


def find_obstacle(source: Path, device: torch.device) -> str | None:
    """Say in half a sentence why the kernel of this file cannot run on the device, or None."""
    if device.type != "cpu":
        return f"it is made for cpu tensors, not {device.type}"
    found = _load_or_explain(source)
    return found if isinstance(found, str) else None


def call(source: Path, name: str, dtype: torch.dtype, *values: Tensor | int | float | None) -> None:
    """Run a function of a kernel; tensors become the address of their first element, None null."""
    words = array("q", [_get_word(value) for value in values])
    _find(source, name, dtype)(words.buffer_info()[0])


def _get_word(value: Tensor | int | float | None) -> int:
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        word: int = struct.unpack("q", struct.pack("d", value))[0]
        return word
    return 0 if value is None else value.data_ptr()


@cache
def _find(source: Path, name: str, dtype: torch.dtype) -> Callable[[int], Any]:
    library = _load_or_explain(source)
    assert not isinstance(library, str), library
    function = getattr(library, f"{name}_{DTYPES[dtype]}")
    function.argtypes, function.restype = (ctypes.c_void_p,), None
    return function


@cache
def _load_or_explain(source: Path) -> ctypes.CDLL | str:
    try:
        return load(source, Path.home() / ".cache" / "hybridize")
    except BuildError as error:
        return str(error)


def load(source: Path, folder: Path) -> ctypes.CDLL:
    """Load the library of a kernel from the folder, where it is built first if it is not there.

    Raises:
        BuildError: there is no compiler, or it fails, or what it made cannot be loaded.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise BuildError(f"no C++ compiler ({', '.join(COMPILERS)}) is on the PATH; install one")
    name = f"{source.parent.name}-{_identify(source, Path(compiler))}.so"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        place = folder / name
        if not place.exists():
            _build(source, compiler, place)
        return _open(place)
    except OSError:
        # No such folder can be had, or it holds a broken file: build for this process alone.
        with tempfile.TemporaryDirectory() as own:
            place = Path(own) / name
            _build(source, compiler, place)
            try:
                return _open(place)
            except OSError as error:
                raise BuildError(f"what {compiler} built cannot be loaded ({error})") from error


def _identify(source: Path, compiler: Path) -> str:
    """Hash what the machine code depends on: the source, the compiler and the processor."""
    about = compiler.resolve().stat()
    parts = [str(compiler.resolve()), str(about.st_size), str(about.st_mtime_ns), *FLAGS]
    parts += [platform.system(), platform.machine(), platform.processor()]
    processors = Path("/proc/cpuinfo")
    if processors.exists():
        lines = processors.read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        parts += sorted({line for line in lines if line.startswith(wanted)})
    digest = hashlib.sha256("\n".join(parts).encode())
    digest.update(HEADER.read_bytes() + source.read_bytes())
    return digest.hexdigest()[:20]


def _build(source: Path, compiler: str, place: Path) -> None:
    """Compile into a file of our own and rename it, so that two processes can do so at once."""
    with tempfile.NamedTemporaryFile(dir=place.parent, suffix=".so", delete=False) as file:
        made = Path(file.name)
    try:
        command = [compiler, *FLAGS, f"-I{HEADER.parent}", str(source), "-o", str(made)]
        # Not every compiler knows the processor it runs on.
        done = _compile([*command, "-march=native"])
        if done.returncode != 0:
            done = _compile(command)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            raise BuildError(f"{compiler} fails: {(lines or ['it says nothing'])[0].strip()}")
        made.replace(place)
    finally:
        made.unlink(missing_ok=True)


def _compile(command: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=SECONDS_TO_BUILD
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} takes longer than {SECONDS_TO_BUILD} s") from error


def _open(place: Path) -> ctypes.CDLL:
    """Load a library and lend it torch's thread team, where torch has one of GNU OpenMP."""
    library = ctypes.CDLL(str(place))
    torch_library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if torch_library.exists():
        team = getattr(ctypes.CDLL(str(torch_library)), "GOMP_parallel", None)
        library.set_team(ctypes.cast(team, ctypes.c_void_p) if team else None)
    return library


def fit(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values in this dtype, without gaps."""
    # Asking first takes a third of the time of two calls that change nothing.
    if values.dtype == dtype and values.is_contiguous():
        return values
    return values.to(dtype).contiguous()


def take(state: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the state for a kernel to write over: a copy where gradients were to pass through."""
    return fit(state.detach().clone() if state.requires_grad else state, dtype)


def lay_out(values: Tensor, dtype: torch.dtype, num_inner: int = 1) -> Tensor:
    """Return the values in this dtype with the last `num_inner` dimensions side by side."""
    values = values.to(dtype)
    inner = 1
    for size, stride in reversed(
        list(zip(values.shape, values.stride(), strict=True))[-num_inner:]
    ):
        if stride != inner and size != 1:
            return values.contiguous()
        inner *= size
    return values
