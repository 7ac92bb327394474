"""The command line as a whole: its commands, its global options, and errors turned into exits."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hybridize import __version__
from hybridize.cli import chat, compare, doctor, export, measure, recipes, report, stages, street
from hybridize.cli.options import say
from hybridize.core.errors import HybridizeError

INTERRUPTED = 130


class ErrorsAsSentences(TyperGroup):
    """A group of commands that says an error in one sentence and exits with its code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a traceback is shown for bugs, or with -v."""
        try:
            return super().invoke(ctx)
        except HybridizeError as error:
            if ctx.params.get("verbose"):
                raise
            say(str(error))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            say("interrupted; the same command goes on from the last checkpoint")
            raise typer.Exit(INTERRUPTED) from None
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


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hybridize {__version__}")
        raise typer.Exit


@app.callback()
def _globals(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show where an error came from.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


for _group in (recipes, street, stages, measure, export, report, compare, chat, doctor):
    _group.add_to(app)
