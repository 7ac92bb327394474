"""The command chat: talk to a model or a server in the terminal, thinking and answer apart."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from hybridize.cli.options import DeviceOption, complain, say
from hybridize.cli.thinking import Sorter

if TYPE_CHECKING:
    from hybridize.cli.talkers import Messages, Talker


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(epilog='Example: echo "add : 2 4 + 1 8 ?" | hybridize chat shipped')(chat)


def chat(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Model folder, hub id, `shipped`, or the URL of a server."
        ),
    ],
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Longest answer, in tokens.")
    ] = 512,
    device: DeviceOption = None,
) -> None:
    """Talk to a model: a question a line, an empty line or the end of input stops."""
    talker = _find_talker(model, device)
    try:
        say(talker.greeting)
        messages: Messages = []
        while question := _ask():
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": ""})
            messages[-1]["content"] = _answer(talker, messages[:-1], max_new_tokens)
    finally:
        talker.close()


def _find_talker(model: str, device: str | None) -> "Talker":
    from hybridize.cli.talkers import LocalTalker, RemoteTalker

    if model.startswith(("http://", "https://")):
        from hybridize.core.settings import read_settings

        return RemoteTalker(model, read_settings().api_key)
    from hybridize.cli.watch import prepare_machine

    prepare_machine()
    return LocalTalker(model, device)


def _ask() -> str:
    typer.echo("> ", nl=False, err=True)
    return typer.get_text_stream("stdin").readline().strip()


def _answer(talker: "Talker", messages: "Messages", max_tokens: int) -> str:
    """Show the answer to the last message as it comes, then its speed; return its text."""
    sorter, shown = Sorter(is_thinking=talker.opens_thinking), _Shown()
    text, num_tokens, total = "", 0, None
    started, first = time.monotonic(), None
    for said in talker.answer(messages, max_tokens):
        if first is None and said.num_tokens:
            first = time.monotonic()
        num_tokens += said.num_tokens
        total = said.conversation_tokens or total
        text += said.text
        if said.thinking:
            shown.write("thinking", said.thinking)
        for kind, part in sorter.add(said.text):
            shown.write(kind, part)
    for kind, part in sorter.finish():
        shown.write(kind, part)
    shown.end()
    _tell_speed(num_tokens, started, first or time.monotonic())
    window = talker.last_training_window
    if window is not None and total is not None and total > window:
        complain(
            f"warning: the conversation has {total} tokens, more than the {window} of a row in "
            "training; answers may get worse."
        )
    return text.strip()


def _tell_speed(num_tokens: int, started: float, first: float) -> None:
    """Say how fast an answer came, its first token apart: that one waits for the prompt."""
    told = f"{num_tokens} tokens, the first after {first - started:.2f} s"
    seconds = time.monotonic() - first
    if num_tokens > 1 and seconds > 0:
        told += f", then {(num_tokens - 1) / seconds:.1f} tok/s"
    say(told)


class _Shown:
    """Writes thinking and answer under headings of their own."""

    def __init__(self) -> None:
        self._kind: str | None = None

    def write(self, kind: str, text: str) -> None:
        if kind != self._kind:
            self.end()
            typer.secho(f"{kind}: ", nl=False, bold=True, dim=kind == "thinking")
            self._kind = kind
        typer.secho(text, nl=False, dim=kind == "thinking")

    def end(self) -> None:
        if self._kind is not None:
            typer.echo()
        self._kind = None
