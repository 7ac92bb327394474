"""The process: `python -m hybridize.serving MODEL` loads a model and serves it until SIGTERM."""

import argparse
import signal
import sys
import threading

from hybridize.core.errors import HybridizeError, MachineError

SECONDS_TO_FINISH = 10.0
"""After SIGTERM, for what is being answered."""


def read_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m hybridize.serving", description=__doc__)
    parser.add_argument("model", help="model folder, hub id, or `shipped`")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument(
        "--max-sequences", type=int, default=8, help="requests answered together; more wait"
    )
    parser.add_argument(
        "--context-tokens", type=int, help="tokens a request may have, answer included"
    )
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--threads", type=int, help="processor threads")
    parser.add_argument("--name", help="what requests call the model")
    return parser.parse_args(arguments)


def main() -> None:
    """Serve; exit with 0 after SIGTERM or Ctrl-C, else as `hybridize` does."""
    try:
        code = serve(read_arguments())
    except HybridizeError as error:
        print(error, file=sys.stderr)  # noqa: T201  this is the program's own log
        code = error.exit_code
    sys.exit(code)


def serve(asked: argparse.Namespace) -> int:
    """Serve until asked to stop; return 0, or 1 where the loop failed.

    Raises:
        ModelError: the model cannot be loaded, or is not trained for so long a context.
        MachineError: the port is taken, or there is no such device.
    """
    from hybridize.serving.handler import Http
    from hybridize.serving.process import make_app

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    try:
        http = Http(asked.host, asked.port)
    except OSError as error:
        raise MachineError(
            f"port {asked.port} of {asked.host} cannot be listened on ({error.strerror}). "
            "Choose another with --port."
        ) from error
    app = make_app(asked, on_failure=stopped.set)
    http.app = app
    app.loop.start()
    answering = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.1})
    answering.start()
    print(f"serving {app.served.name} at {asked.host}:{asked.port}", flush=True)  # noqa: T201
    stopped.wait()
    http.shutdown()
    answering.join()
    app.loop.stop(SECONDS_TO_FINISH)
    app.wait_until_idle(SECONDS_TO_FINISH)
    http.server_close()
    return 0 if app.loop.failure is None else 1


if __name__ == "__main__":
    main()
