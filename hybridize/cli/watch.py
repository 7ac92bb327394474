"""What a run shows on the standard error: a line a stop, and a living line in training."""

import time
from typing import Any

from hybridize.cli.options import is_quiet, say
from hybridize.core.errors import MachineError
from hybridize.core.quantities import short_seconds
from hybridize.core.settings import read_settings
from hybridize.pipeline.observer import Observer

EVERY_SECONDS = 30.0


def prepare_machine() -> None:
    """Set the threads and the forms of operators the environment asks for.

    Raises:
        MachineError: it asks for an operator or a form that does not exist.
    """
    settings = read_settings()
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)
    if settings.forms is not None:
        from hybridize.ops import forms

        try:
            forms.prefer(settings.forms)
        except ValueError as error:
            raise MachineError(f"environment variable HYBRIDIZE_FORMS: {error}.") from error


class Watcher(Observer):
    """Tells the news of a run on the standard error."""

    def __init__(self) -> None:
        self._line: Any = None
        self._shown = 0.0

    def node_started(self, node: str) -> None:
        """Say that a stop begins."""
        say(f"{node} ...")

    def node_progressed(self, node: str, done: int, total: int) -> None:
        """Say how far a stop is, every half minute and at its end."""
        moment = time.monotonic()
        if done == total or moment - self._shown > EVERY_SECONDS:
            self._shown = moment
            say(f"{time.strftime('%H:%M:%S')}  {node}  {done}/{total}")

    def node_stepped(self, node: str, record: Any) -> None:
        """Show a step of training."""
        if is_quiet():
            return
        if self._line is None:
            from hybridize import api

            self._line = api.show_steps(node)
        self._line(record)

    def node_said(self, node: str, text: str) -> None:
        """Show a table or a sentence."""
        self._end_line()
        say(text)

    def node_finished(self, node: str, seconds: float, skipped: bool) -> None:
        """Say that a stop is done, or was before."""
        self._end_line()
        say(f"{node} {'was done before' if skipped else f'done in {short_seconds(seconds)}'}")

    def _end_line(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
