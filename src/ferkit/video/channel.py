"""Threads beside the frame loop: one reads ahead, one writes behind, with bounded queues between them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator, Iterable
from queue import Queue
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")

_END = object()


class _WeightedQueue(Queue[tuple[Any, int]]):
    """A queue of pairs of item and weight that is full as soon as its weight reaches ``maxsize``."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._weight = 0

    def _qsize(self) -> int:
        return self._weight

    def _put(self, pair: tuple[Any, int]) -> None:
        super()._put(pair)
        self._weight += pair[1]

    def _get(self) -> tuple[Any, int]:
        pair = super()._get()
        self._weight -= pair[1]
        return pair

    def unbound(self) -> None:
        """Drop the limit; a thread that waits to put an item goes on."""
        with self.mutex:
            self.maxsize = sys.maxsize
            self.not_full.notify_all()


class _Thread(threading.Thread):
    """A thread that keeps its error, and does not keep the process from ending if it is left waiting."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        super().__init__(target=work, name=name, daemon=True)
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do the work."""
        try:
            super().run()
        except BaseException as error:  # noqa: BLE001  # it is raised again in the caller's thread
            self._error = error

    def raise_error(self) -> None:
        """Raise the error that ended the work, if one did."""
        if self._error is not None:
            raise self._error


def read_ahead(
    source: Iterable[T],
    *,
    limit: int,
    weigh: Callable[[T], int],
    cancel: Callable[[], None] = lambda: None,
) -> Generator[T, None, None]:
    """Yield the items of ``source``, which runs in a thread of its own and raises its errors here.

    Closing the generator ends the thread after its current item.

    Args:
        source: The items.
        limit: Weight of the queued items at which the thread waits.
        weigh: Returns the weight of an item, at least 1.
        cancel: Called when the generator ends, so that a slow source can stop within an item.
    """
    items = _WeightedQueue(limit)
    closed = threading.Event()

    def produce() -> None:
        try:
            for item in source:
                items.put((item, weigh(item)))
                if closed.is_set():
                    return
        finally:
            items.put((_END, 1))

    thread = _Thread(produce, "ferkit-reader")
    thread.start()
    try:
        while (item := items.get()[0]) is not _END:
            yield item
        thread.raise_error()
    finally:
        closed.set()
        cancel()
        items.unbound()
        thread.join()


class BackgroundWriter(Generic[T]):
    """Passes items to ``consume``, which runs in a thread of its own.

    Used as a context manager: leaving it waits until all items are consumed. An error of ``consume`` is
    raised at the next :meth:`put`, or at the end.

    ``limit`` is the weight of the queued items at which :meth:`put` waits.
    """

    def __init__(self, consume: Callable[[T], None], *, limit: int) -> None:
        self._consume = consume
        self._items = _WeightedQueue(limit)
        self._thread = _Thread(self._run, "ferkit-writer")

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until all items are consumed, and raise the error of ``consume``."""
        self._items.put((_END, 1))
        self._thread.join()
        if error is None:
            self._thread.raise_error()

    def put(self, item: T, weight: int = 1) -> None:
        """Queue an item as soon as there is room."""
        self._items.put((item, weight))
        self._thread.raise_error()

    def _run(self) -> None:
        try:
            while (item := self._items.get()[0]) is not _END:
                self._consume(item)
        finally:
            self._items.unbound()  # after an error nobody takes items
