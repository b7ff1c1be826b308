"""The threads beside the frame loop: order, bounded queues, errors in both directions, and an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from ferkit.video.channel import BackgroundWriter, read_ahead


def one(item: object) -> int:
    return 1


def wait_until(condition: object, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.001)


def test_items_come_in_order() -> None:
    assert list(read_ahead(range(1000), limit=3, weigh=one)) == list(range(1000))


@pytest.mark.parametrize(("limit", "weight", "queued"), [(5, 1, 5), (5, 2, 3), (5, 9, 1)])
def test_the_reader_waits_when_the_queue_has_reached_its_limit(limit: int, weight: int, queued: int) -> None:
    """A known fault: memory that grows. Besides the queue there is one item that waits to be put."""
    made: list[int] = []

    def source() -> Iterator[int]:
        for k in range(100):
            made.append(k)
            yield k

    items = read_ahead(source(), limit=limit, weigh=lambda item: weight)
    assert next(items) == 0
    wait_until(lambda: len(made) >= queued + 2)
    time.sleep(0.02)
    assert len(made) == queued + 2
    items.close()


def test_an_error_of_the_source_is_raised_after_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("broken")

    items = read_ahead(source(), limit=10, weigh=one)
    assert (next(items), next(items)) == (1, 2)
    with pytest.raises(ValueError, match="broken"):
        next(items)


@pytest.mark.parametrize("limit", [1, 2, 50])
def test_closing_early_ends_the_thread_and_the_source(limit: int) -> None:
    ended = threading.Event()

    def source() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            ended.set()

    items = read_ahead(source(), limit=limit, weigh=one)
    next(items)
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "ferkit-reader"]
    assert ended.wait(5)


def test_closing_cancels_a_source_that_is_slow_at_an_item() -> None:
    cancelled = threading.Event()
    seen: list[bool] = []

    def source() -> Iterator[int]:
        yield 0
        seen.append(cancelled.wait(5))

    items = read_ahead(source(), limit=2, weigh=one, cancel=cancelled.set)
    next(items)
    items.close()
    assert seen == [True]


def test_a_writer_consumes_all_items_before_its_block_ends() -> None:
    taken: list[int] = []

    def slow(item: int) -> None:
        time.sleep(0.001)
        taken.append(item)

    with BackgroundWriter(slow, limit=4) as writer:
        for k in range(50):
            writer.put(k)
    assert taken == list(range(50))


def test_an_error_of_a_writer_is_raised_where_items_are_put() -> None:
    def broken(item: int) -> None:
        raise ValueError("disk full")

    def fill() -> None:
        with BackgroundWriter(broken, limit=2) as writer:
            for k in range(1000):
                writer.put(k)

    with pytest.raises(ValueError, match="disk full"):
        fill()


def test_an_error_at_the_last_item_of_a_writer_is_raised_at_the_end() -> None:
    def broken(item: int) -> None:
        time.sleep(0.02)
        raise ValueError("disk full")

    def fill() -> None:
        with BackgroundWriter(broken, limit=2) as writer:
            writer.put(1)

    with pytest.raises(ValueError, match="disk full"):
        fill()


def test_an_error_of_the_caller_is_not_hidden_by_one_of_the_writer() -> None:
    def broken(item: int) -> None:
        raise ValueError("disk full")

    def fill() -> None:
        with BackgroundWriter(broken, limit=2) as writer:
            writer.put(1)
            raise KeyError("caller")

    with pytest.raises(KeyError, match="caller"):
        fill()
