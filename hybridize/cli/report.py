"""The command report: build the page of a run, or of several side by side."""

from pathlib import Path
from typing import Annotated

import typer

from hybridize.cli.options import WHERE, say, show


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(epilog="Examples: hybridize report runs/tiny; hybridize report runs/a runs/b")(
        report
    )


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    formats: Annotated[
        str, typer.Option("--format", metavar="LIST", help="html, md, or both.")
    ] = "html,md",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", rich_help_panel=WHERE, help="Folder of a comparison of several runs."
        ),
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser.")
    ] = False,
) -> None:
    """Build the report of a run, or of several side by side."""
    from hybridize.report import build_comparison, build_report, verdict

    wanted = formats.split(",")
    if len(runs) == 1:
        page = build_report(runs[0], wanted)
        say(verdict(runs[0]))
    else:
        page = build_comparison(runs, out or Path("runs") / "comparison", wanted)
    show(str(page))
    if open_page:
        typer.launch(str(page))
