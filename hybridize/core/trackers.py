"""The trackers that metrics can go to besides their file, and whether they are installed."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

from hybridize.core.errors import MachineError

Tracker = Literal["tensorboard", "wandb", "trackio"]


def find_trackers(names: Sequence[Tracker]) -> None:
    """Check that the packages of trackers are installed, before hours of training.

    Raises:
        MachineError: one is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise MachineError(
                f"track names {name}, which is not installed. "
                f'Install it: pip install "hybridize[{name}]", or leave it out: '
                "metrics.jsonl holds all metrics."
            )
