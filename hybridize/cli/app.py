"""The command line as a whole: its commands, its global options, and errors turned into exits."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hybridize import __version__
from hybridize.cli import (
    benches,
    chat,
    compare,
    doctor,
    export,
    measure,
    recipes,
    report,
    serve,
    stages,
    street,
)
from hybridize.cli.options import complain, set_quiet
from hybridize.core.errors import HybridizeError, Interrupted, Terminated
from hybridize.core.settings import set_no_color


class ErrorsAsSentences(TyperGroup):
    """A group of commands that says an error in one sentence and exits with its code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a traceback is shown for bugs, or with -v."""
        try:
            with _hear_sigterm():
                return super().invoke(ctx)
        except HybridizeError as error:
            if ctx.params.get("verbose"):
                raise
            complain(str(error))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as asked:
            complain("interrupted; the same command begins again with what was finished")
            code = Interrupted("", terminated=isinstance(asked, Terminated)).exit_code
            raise typer.Exit(code) from None
        except BrokenPipeError:
            sys.stderr.close()
            raise typer.Exit(0) from None


app = typer.Typer(
    cls=ErrorsAsSentences,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn a pretrained transformer into a hybrid of attention and SSM layers by staged "
    "distillation.",
    epilog="A first result: hybridize new mine --template tiny && hybridize run mine.yaml",
)


@contextmanager
def _hear_sigterm() -> Iterator[None]:
    """Make SIGTERM raise Terminated, so that it is answered as Ctrl-C is."""

    def hear(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hybridize {__version__}")
        raise typer.Exit


@app.callback()
def _globals(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show where an error came from.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but results and errors.")
    ] = False,
    no_color: Annotated[
        bool, typer.Option("--no-color", help="No colours; so does the variable NO_COLOR.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    set_quiet(quiet)
    if no_color:
        set_no_color()


for _group in (
    recipes,
    street,
    stages,
    measure,
    benches,
    export,
    report,
    compare,
    serve,
    chat,
    doctor,
):
    _group.add_to(app)
