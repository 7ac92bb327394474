"""The process: `python -m hybridize.serving MODEL` loads a model and serves it until SIGTERM."""

import argparse
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from hybridize.core.errors import HybridizeError, MachineError, ModelError
from hybridize.core.settings import read_settings

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


def make_app(asked: argparse.Namespace, on_failure: Any) -> Any:
    """Load a model and put everything together that answers requests to it; nothing is started."""
    import torch

    from hybridize.models.model import load
    from hybridize.serving.asked import Served
    from hybridize.serving.counters import Counters
    from hybridize.serving.handler import App
    from hybridize.serving.loop import Loop
    from hybridize.serving.stepping import Stepper
    from hybridize.serving.text import SharedTokenizer
    from hybridize.training.device import choose_device

    settings = read_settings()
    threads = asked.threads or settings.threads
    if threads is not None:
        torch.set_num_threads(threads)
    if settings.forms is not None:
        _prefer_forms(settings.forms)
    model = load(asked.model, name=asked.name or Path(asked.model).name, dtype=asked.dtype)
    network: Any = model.network
    network.to(choose_device(settings.device))
    config = network.config
    context_tokens = asked.context_tokens or config.max_position_embeddings
    if context_tokens > config.max_position_embeddings:
        raise ModelError(
            f"model {asked.model} has positions for {config.max_position_embeddings} tokens, not "
            f"for {context_tokens}. Ask for a shorter context."
        )
    stepper = Stepper(network, asked.max_sequences)
    if stepper.is_alone:
        print("one request at a time: products round by place here", flush=True)  # noqa: T201
    counters = Counters()
    return App(
        served=Served(
            name=model.name,
            tokenizer=None if model.tokenizer is None else SharedTokenizer(model.tokenizer),
            vocab_size=config.vocab_size,
            context_tokens=context_tokens,
        ),
        loop=Loop(stepper, counters, on_failure),
        counters=counters,
        ends=_find_ends(model),
        api_key=settings.api_key,
        models={
            "max_model_len": context_tokens,
            "last_training_window": config.last_training_window,
            "layout": str(model.layout),
        },
    )


def _prefer_forms(text: str) -> None:
    from hybridize.ops import forms

    try:
        forms.prefer(text)
    except ValueError as error:
        raise MachineError(f"environment variable HYBRIDIZE_FORMS: {error}.") from error


def _find_ends(model: Any) -> frozenset[int]:
    """Return the tokens that end a text: those of generation_config.json, else the tokenizer's."""
    ends = getattr(model.network.generation_config, "eos_token_id", None)
    if ends is None:
        ends = getattr(model.tokenizer, "eos_token_id", None)
    return frozenset(() if ends is None else ends if isinstance(ends, list) else [ends])


if __name__ == "__main__":
    main()
