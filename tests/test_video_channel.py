"""The bounded queue between threads: order, limits, errors in both directions, and an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from ferkit.video.channel import Channel, Sink, in_background


def one(item: object) -> int:
    return 1


def wait_until(condition: object, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.001)


def test_everything_comes_in_order() -> None:
    assert list(in_background(range(1000), limit=3, weigh=one)) == list(range(1000))


@pytest.mark.parametrize(("limit", "weights", "ahead"), [(5, 1, 5), (5, 2, 2), (5, 9, 1)])
def test_the_producer_waits_when_it_is_too_far_ahead(limit: int, weights: int, ahead: int) -> None:
    """A known fault: memory that grows. Beyond the limit there is only the item that waits to be put."""
    made: list[int] = []

    def source() -> Iterator[int]:
        for k in range(100):
            made.append(k)
            yield k

    items = in_background(source(), limit=limit, weigh=lambda item: weights)
    assert next(items) == 0
    wait_until(lambda: len(made) >= ahead + 2)
    time.sleep(0.02)
    assert len(made) == ahead + 2
    items.close()


def test_an_error_of_the_source_is_raised_after_what_came_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("broken")

    items = in_background(source(), limit=10, weigh=one)
    assert (next(items), next(items)) == (1, 2)
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_closing_early_ends_the_thread_and_the_source() -> None:
    ended = threading.Event()

    def source() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            ended.set()

    items = in_background(source(), limit=2, weigh=one)
    next(items)
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "ferkit-reader"]
    assert ended.wait(5)


def test_closing_tells_a_source_that_is_long_at_an_item_to_leave_off() -> None:
    told = threading.Event()
    heard: list[bool] = []

    def source() -> Iterator[int]:
        yield 0
        heard.append(told.wait(5))

    items = in_background(source(), limit=2, weigh=one, cancel=told.set)
    next(items)
    items.close()
    assert heard == [True]


def test_a_sink_consumes_everything_before_it_is_left() -> None:
    taken: list[int] = []

    def slow(item: int) -> None:
        time.sleep(0.001)
        taken.append(item)

    with Sink(slow, limit=4) as sink:
        for k in range(50):
            sink.put(k)
    assert taken == list(range(50))


def test_an_error_of_a_sink_is_raised_where_items_are_put() -> None:
    def broken(item: int) -> None:
        raise ValueError("disk full")

    def fill() -> None:
        with Sink(broken, limit=2) as sink:
            for k in range(1000):
                sink.put(k)

    with pytest.raises(ValueError, match="disk full"):
        fill()


def test_an_error_at_the_last_item_of_a_sink_is_raised_at_the_end() -> None:
    def broken(item: int) -> None:
        time.sleep(0.02)
        raise ValueError("disk full")

    def fill() -> None:
        with Sink(broken, limit=2) as sink:
            sink.put(1)

    with pytest.raises(ValueError, match="disk full"):
        fill()


def test_an_error_of_the_caller_is_not_hidden_by_one_of_the_sink() -> None:
    def broken(item: int) -> None:
        raise ValueError("disk full")

    def fill() -> None:
        with Sink(broken, limit=2) as sink:
            sink.put(1)
            raise KeyError("caller")

    with pytest.raises(KeyError, match="caller"):
        fill()


def test_a_closed_channel_takes_nothing_and_gives_nothing() -> None:
    channel: Channel[int] = Channel(3)
    assert channel.put(1)
    channel.close()
    assert not channel.put(2)
    assert list(channel) == []
