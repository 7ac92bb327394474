"""Starting an engine as a process, waiting until it answers, and stopping it."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hybridize.core.errors import MachineError
from hybridize.core.settings import make_environment
from hybridize.engines.base import Engine, ServeSettings
from hybridize.engines.http import get_text
from hybridize.engines.processes import (
    make_end_with_parent,
    memory_bytes,
    peak_memory_bytes,
    processor_seconds,
    reset_peak_memory,
)

SECONDS_TO_START = 600.0
"""An engine that compiles and loads takes minutes; one that takes longer is given up."""
SECONDS_TO_STOP = 20.0
"""After a request to stop, before the process is killed."""
SECONDS_BETWEEN_LOOKS = 0.1
LAST_LINES = 12
"""Lines of the log that an error quotes."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """An engine that runs and answers."""

    engine: str
    """Name of the engine."""
    url: str
    """Where it answers, such as http://127.0.0.1:8000; OpenAI's paths begin with /v1 below it."""
    health_url: str
    """Answers 200 while it is well."""
    log: Path
    """What it writes."""
    process: "subprocess.Popen[bytes]"

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self.process.pid

    def memory(self) -> int:
        """Return the bytes of memory it holds, with all processes it started."""
        return memory_bytes(self.pid)

    def peak_memory(self) -> int:
        """Return the most bytes of memory it has held, with all processes it started."""
        return peak_memory_bytes(self.pid)

    def reset_peak_memory(self) -> None:
        """Begin anew to note the most memory it holds, where the system allows it."""
        reset_peak_memory(self.pid)

    def processor_seconds(self) -> float:
        """Return the processor time it has had, with all processes it started."""
        return processor_seconds(self.pid)

    def check(self) -> None:
        """Raise MachineError, with the last lines of the log, if the process has ended."""
        if self.process.poll() is not None:
            raise MachineError(_describe_end(self.engine, self.process.returncode, self.log))


@contextmanager
def serving(
    engine: Engine,
    settings: ServeSettings,
    *,
    log: Path | None = None,
    seconds_to_start: float = SECONDS_TO_START,
) -> Iterator[Server]:
    """Start an engine, yield it once it answers, stop it at the end of the `with` block.

    It is asked to end as SIGTERM asks, with all processes it started, and killed if it does not.

    Args:
        engine: see `hybridize.engines.find_engine`.
        settings: a port of 0 becomes a free one.
        log: file for what the engine writes; by default one in the temporary folder, removed at
            the end.
        seconds_to_start: after which it is given up.

    Raises:
        MachineError: the engine is not installed, ends early or does not answer in time; the
            message has the last lines of its log.
        ModelError: the engine cannot serve the model as asked.
    """
    settings = replace(settings, port=settings.port or find_port(settings.host))
    command = engine.command(settings)
    handle, name = tempfile.mkstemp(prefix=f"hybridize-{engine.name}-", suffix=".log")
    os.close(handle)
    path = Path(name) if log is None else log
    try:
        with path.open("wb") as output:
            process = _start(command.argv, command.environment, output.fileno(), engine.name)
        url = f"http://{format_host(settings.host)}:{settings.port}"
        server = Server(
            engine=engine.name,
            url=url,
            health_url=url + engine.health_path,
            log=path,
            process=process,
        )
        try:
            _wait(server, seconds_to_start)
            yield server
        finally:
            stop(process)
    finally:
        Path(name).unlink(missing_ok=True)


def find_port(host: str = "127.0.0.1") -> int:
    """Return a port that nothing listens on at this moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def format_host(host: str) -> str:
    """Return an address as it stands in a URL that reaches it from this machine."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{here}]" if ":" in here else here


def stop(process: "subprocess.Popen[bytes]", seconds: float = SECONDS_TO_STOP) -> None:
    """Ask a process and its group to end, and kill what is left after `seconds`."""
    for request in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        _signal(process.pid, request)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            continue
    _signal(process.pid, signal.SIGKILL)


def _signal(group: int, request: signal.Signals) -> None:
    try:
        os.killpg(group, request)
    except (ProcessLookupError, PermissionError):
        return


def _start(
    argv: tuple[str, ...], changes: Mapping[str, str], output: int, name: str
) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            argv,
            env=make_environment(changes),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=make_end_with_parent(),
        )
    except OSError as error:
        raise MachineError(
            f"engine {name}: {argv[0]} cannot be started ({error.strerror}). "
            "Check where it is installed; `hybridize doctor` says where it was found."
        ) from error


def _wait(server: Server, seconds: float) -> None:
    """Return once the engine answers."""
    deadline = time.monotonic() + seconds
    while not _is_well(server.health_url):
        server.check()
        if time.monotonic() > deadline:
            raise MachineError(
                f"engine {server.engine} did not answer at {server.health_url} within "
                f"{seconds:.0f} s. Its log ends with:\n{read_end(server.log)}"
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _is_well(url: str) -> bool:
    try:
        get_text(url, timeout=5)
    except MachineError:
        return False
    return True


def _describe_end(name: str, code: int, log: Path) -> str:
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"engine {name} ended ({how}). Its log ends with:\n{read_end(log)}"


def read_end(log: Path, num_lines: int = LAST_LINES) -> str:
    """Return the last lines of a log, without the empty ones."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([line for line in lines if line.strip()][-num_lines:]) or "(nothing)"
