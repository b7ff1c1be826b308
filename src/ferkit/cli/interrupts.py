"""Ctrl-C as the wish to end early, so that what was done until then is kept."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupts:
    """The first signal sets an event; the second one raises as usual.

    Attributes:
        stop: Set once a signal came.
        received: Number of that signal; None before.
    """

    def __init__(self, stop: threading.Event | None = None) -> None:
        self.stop = threading.Event() if stop is None else stop
        self.received: int | None = None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Take a signal."""
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.received = number
        self.stop.set()


@contextlib.contextmanager
def stopping(stop: threading.Event | None = None) -> Iterator[Interrupts]:
    """Yield what SIGINT and SIGTERM set within the block; nothing sets it outside of the main thread.

    Args:
        stop: The event to set; by default a new one.
    """
    interrupts = Interrupts(stop)
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.signal(number, interrupts.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
