"""Ctrl-C as a request to stop, so that the results so far are kept."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupts:
    """The first signal sets an event; the second raises KeyboardInterrupt.

    Attributes:
        stop: Set by the first signal.
        received: The number of that signal; None before.
    """

    def __init__(self, stop: threading.Event | None = None) -> None:
        self.stop = threading.Event() if stop is None else stop
        self.received: int | None = None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.received = number
        self.stop.set()


@contextlib.contextmanager
def stopping(stop: threading.Event | None = None) -> Iterator[Interrupts]:
    """Handle SIGINT and SIGTERM within the block; outside of the main thread they are not handled."""
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
