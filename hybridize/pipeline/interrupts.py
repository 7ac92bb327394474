"""What a run says when it is stopped: where, what is kept, and how to continue."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybridize.core.errors import Interrupted, Terminated
from hybridize.pipeline.street import Node


def how_to_continue(where: str, folder: Path) -> str:
    """Say that a run stopped and goes on; `where` reads like `before h6`."""
    return (
        f"stopped {where}; what was finished is kept in {folder}. Run the same again to continue."
    )


def say_where(asked: Interrupted | KeyboardInterrupt, node: str, folder: Path) -> Interrupted:
    """Return what is raised for an interrupt in a node; one that says it itself stays as it is."""
    if isinstance(asked, Interrupted):
        return asked
    terminated = isinstance(asked, Terminated)
    return Interrupted(how_to_continue(f"in {node}", folder), terminated=terminated)


@contextmanager
def layers_kept(node: Node) -> Iterator[None]:
    """Say of an interrupted measurement that its layers are kept, not what a probe would say."""
    try:
        yield
    except Interrupted as asked:
        asked.args = (
            f"stopped in {node.name}; the layers measured so far are kept in {node.folder}. "
            "Run the same again to continue.",
        )
        raise
