"""The command serve: an OpenAI-compatible server on the engine at hand."""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybridize.cli.options import MACHINE, WHERE, ModelArgument, complain, name_model, say, show
from hybridize.core.errors import HybridizeError

if TYPE_CHECKING:
    from hybridize.engines.choose import Choice
    from hybridize.engines.server import Server

SECONDS_BETWEEN_LOOKS = 0.5

EngineOption = Annotated[
    str,
    typer.Option(metavar="NAME", rich_help_panel=MACHINE, help="See `hybridize ls engines`."),
]


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(epilog="Example: hybridize serve out/h7 --port 8000")(serve)


def serve(
    model: ModelArgument,
    engine: EngineOption = "auto",
    port: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=WHERE, help="Port to listen on; 0: any.")
    ] = 8000,
    host: Annotated[
        str, typer.Option(metavar="NAME", rich_help_panel=WHERE, help="Address to listen on.")
    ] = "127.0.0.1",
    max_sequences: Annotated[
        int, typer.Option(metavar="N", min=1, help="Requests answered together; more wait.")
    ] = 8,
    context_tokens: Annotated[
        str | None,
        typer.Option(metavar="N", help="Longest prompt and answer; the model's where left out."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="NAME", help="Type of the weights; the model's else.")
    ] = None,
) -> None:
    """Serve a model with OpenAI's API until Ctrl-C or SIGTERM, on the engine at hand."""
    from hybridize.core.model_files import read_config
    from hybridize.core.quantities import parse_tokens
    from hybridize.core.settings import read_settings
    from hybridize.engines.base import ServeSettings
    from hybridize.engines.server import serving

    settings, folder = read_settings(), find_model(model)
    is_gguf = folder.is_file() or any(folder.glob("*.gguf"))
    config = {} if is_gguf else read_config(folder)
    tokens = None if context_tokens is None else parse_tokens(context_tokens)
    _warn_of_context(config, tokens)
    kept = dtype or str(config.get("dtype") or config.get("torch_dtype") or "float32")
    with tempfile.TemporaryDirectory(prefix="hybridize-") as temporary:
        choice, ready = _choose(folder, engine, Path(temporary), kept)
        _explain(choice)
        asked = ServeSettings(
            model=ready,
            host=host,
            port=port,
            max_sequences=max_sequences,
            context_tokens=tokens,
            dtype=kept,
            threads=settings.threads,
            name=name_model(model),
            api_key=settings.api_key,
        )
        with serving(choice.engine, asked) as server:
            try:
                _wait(server, asked.name)
            except KeyboardInterrupt:
                say("stopping: what is being answered is finished first")


def find_model(model: str) -> Path:
    """Return the folder or file that a model's name on the command line stands for.

    Raises:
        ModelError: there is none, and no hub id of that name was fetched.
    """
    path = Path(model)
    if path.exists():
        return path
    if model == "shipped":
        from hybridize.core.shape import SHIPPED_TEACHER

        return SHIPPED_TEACHER
    from hybridize.models.folders import find_folder

    return find_folder(model)


def _explain(choice: "Choice") -> None:
    say(f"engine {choice.engine.name} {choice.engine.version()}: {choice.why}")
    for name, reason in choice.passed_over.items():
        say(f"  not {name}: {reason}")


def _choose(model: Path, engine: str, temporary: Path, dtype: str) -> "tuple[Choice, Path]":
    """Choose an engine, and write the model for it where it wants that.

    Where no engine was asked for and the model cannot be written after all, the next is chosen.
    """
    from hybridize.engines.choose import choose_engine

    excluded: dict[str, str] = {}
    while True:
        choice = choose_engine(model, None if engine == "auto" else engine, excluded=excluded)
        if choice.format is None:
            return choice, model
        from hybridize.exports.ready import make_ready

        say(f"writing {model} as {choice.format} for {choice.engine.name}, for this time only")
        try:
            folder = temporary / choice.format
            return choice, make_ready(model, folder, format=choice.format, dtype=dtype)
        except HybridizeError as error:
            if engine != "auto":
                raise
            excluded[choice.engine.name] = str(error)


def _warn_of_context(config: dict[str, object], tokens: int | None) -> None:
    """Say where requests may be longer than what the converted layers were trained on."""
    window, most = config.get("last_training_window"), config.get("max_position_embeddings")
    longest = tokens or most
    if isinstance(window, int) and isinstance(longest, int) and longest > window:
        complain(
            f"warning: requests may have {longest} tokens, but the converted layers were trained "
            f"on rows of {window}; beyond that answers may get worse. --context-tokens {window} "
            "refuses longer ones."
        )


def _wait(server: "Server", name: str) -> None:
    """Say where the server is; return never, but raise when it ends or is asked to."""
    show(f"{name} at {server.url}/v1")
    say(f"health at {server.health_url}, log in {server.log}; Ctrl-C stops")
    while True:
        server.check()
        time.sleep(SECONDS_BETWEEN_LOOKS)
