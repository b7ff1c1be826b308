"""A bounded queue between two threads: the reader and the work, the work and the writer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """Carries items from one thread to another; whoever is ahead waits.

    The producer puts items inside ``with channel:``; leaving the block, well or by an error, ends the
    stream, and the error is raised where the items are taken.

    Args:
        limit: Total weight of the items under way; a single item may be heavier.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[T, int]] = deque()
        self._weight = 0
        self._finished = False
        self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        """Begin to produce."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """End the stream; an error travels to the taking side."""
        with self._changed:
            self._finished = True
            self._error = error
            self._changed.notify_all()
        return True

    def put(self, item: T, weight: int = 1) -> bool:
        """Add an item, as soon as there is room; False if nobody takes items any more."""
        with self._changed:
            while self._items and self._weight + weight > self._limit and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            self._items.append((item, weight))
            self._weight += weight
            self._changed.notify_all()
            return True

    def close(self) -> None:
        """Take no more: what is under way is dropped, and the producer is told."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Take items until the stream ends; raise what ended it."""
        while True:
            with self._changed:
                while not self._items and not self._finished and not self._closed:
                    self._changed.wait()
                if not self._items:
                    if self._error is not None and not self._closed:
                        raise self._error
                    return
                item, weight = self._items.popleft()
                self._weight -= weight
                self._changed.notify_all()
            yield item


def in_background(
    source: Iterable[T],
    *,
    limit: int,
    weigh: Callable[[T], int],
    cancel: Callable[[], None] = lambda: None,
) -> Generator[T, None, None]:
    """Yield the items of ``source``, which runs ahead in a thread of its own as far as ``limit`` allows.

    Closing the generator ends the thread, after the item it is at.

    Args:
        source: What to run.
        limit: Total weight of the items under way.
        weigh: Returns the weight of an item.
        cancel: Called when the generator ends: tells a source that may be long at an item to leave off.
    """
    channel: Channel[T] = Channel(limit)

    def produce() -> None:
        with channel:
            for item in source:
                if not channel.put(item, weigh(item)):
                    return

    # A daemon: a stream that was left half read must not keep the process from ending.
    thread = threading.Thread(target=produce, name="ferkit-reader", daemon=True)
    thread.start()
    try:
        yield from channel
    finally:
        channel.close()
        cancel()
        thread.join()


class Sink(Generic[T]):
    """Hands items to ``consume``, which works in a thread of its own.

    Used as a context manager: leaving it waits until everything is consumed. An error of ``consume`` is
    raised at the next :meth:`put`, or at the end.

    Args:
        consume: What to do with an item.
        limit: Total weight of the items that wait.
    """

    def __init__(self, consume: Callable[[T], None], *, limit: int) -> None:
        self._consume = consume
        self._items: Channel[T] = Channel(limit)
        self._outcome: Channel[None] = Channel(1)
        self._thread = threading.Thread(target=self._run, name="ferkit-writer", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until everything is consumed, and raise what went wrong with it."""
        with self._items:
            pass
        self._thread.join()
        if error is None:
            list(self._outcome)

    def put(self, item: T, weight: int = 1) -> None:
        """Hand over an item, as soon as there is room."""
        if not self._items.put(item, weight):
            list(self._outcome)

    def _run(self) -> None:
        with self._outcome:
            try:
                for item in self._items:
                    self._consume(item)
            finally:
                self._items.close()
