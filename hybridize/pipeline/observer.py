"""What a run tells whoever watches it; the default watcher is silent."""

from typing import Any


class Observer:
    """Receives the news of a run; override what is to be shown."""

    def run_started(self, facts: dict[str, str]) -> None:
        """Told once, with what will be done: label -> text."""

    def node_started(self, node: str) -> None:
        """A node begins, or goes on."""

    def node_progressed(self, node: str, done: int, total: int) -> None:
        """So many of its pieces (layers, problems, points) are done."""

    def node_stepped(self, node: str, record: Any) -> None:
        """A training node made a step; `record` is a `StepRecord`."""

    def node_said(self, node: str, text: str) -> None:
        """A node has a table or a sentence to show."""

    def node_finished(self, node: str, seconds: float, skipped: bool) -> None:
        """A node is done, or was done before."""
