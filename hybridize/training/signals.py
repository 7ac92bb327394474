"""Turns the first interrupt into a request that the loop answers after its step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def catch_signals() -> Iterator[Callable[[], int | None]]:
    """Yield a function that tells which of SIGINT and SIGTERM has come; None before.

    The second signal acts as it did outside, at once. Outside the main thread, where Python hears
    no signals, nothing is caught.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hear(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        restore()

    try:
        for number in before:
            signal.signal(number, hear)
        yield lambda: came[0] if came else None
    finally:
        restore()
