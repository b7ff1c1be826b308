"""A bounded pool of threads: work beyond its limits is refused, not piled up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from ferkit.service.metrics import Metrics
from ferkit.service.problems import Problem

_Result = TypeVar("_Result")


class Cancelled(Exception):  # noqa: N818  # a signal between threads, not an error
    """Raised inside a thread whose request has no reader any more."""


class Pool:
    """Runs work in threads, outside the event loop.

    Used by the event loop's thread only. A place is given back when the thread is done, not when the client
    has gone: a thread cannot be stopped from outside.

    ``waiting`` pieces of work may wait, and each client may have ``per_client`` requests in flight.
    """

    def __init__(self, threads: int, waiting: int, per_client: int, metrics: Metrics) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="ferkit")
        self._threads = threads
        self._limit = threads + waiting
        self._per_client = per_client
        self._metrics = metrics
        self._clients: Counter[str] = Counter()
        self._taken = 0
        self._recent = 0.2  # seconds of a piece of work, a running mean

    @property
    def full(self) -> bool:
        """Whether new work would be refused."""
        return self._taken >= self._limit

    @contextmanager
    def client(self, address: str) -> Iterator[None]:
        """Count a request of a client while it is in flight.

        Raises:
            Problem: 429 if the client has too many.
        """
        if self._clients[address] >= self._per_client:
            raise Problem(
                429,
                f"this client has {self._per_client} requests in flight, which is the limit; wait for them",
                retry_after=1,
                reason="client",
            )
        self._clients[address] += 1
        try:
            yield
        finally:
            self._clients[address] -= 1
            if not self._clients[address]:
                del self._clients[address]

    def check(self) -> None:
        """Refuse a request early, before its body is read.

        Raises:
            Problem: 503 if all threads are busy and the queue is full.
        """
        if self.full:
            raise Problem(
                503,
                f"the server is busy: {self._taken} requests are computed or wait; try again later",
                retry_after=self._wait(),
                reason="busy",
            )

    async def run(self, route: str, work: Callable[[Callable[[], None]], _Result], seconds: float) -> _Result:
        """Run work in a thread and return its result.

        ``work`` is called in the thread with a function that raises :class:`Cancelled` when the time is up;
        long work calls it between its parts. The time limit includes waiting.

        Raises:
            Problem: 503 if the queue is full or the time is up.
        """
        self.check()
        stop = threading.Event()

        def check() -> None:
            if stop.is_set():
                raise Cancelled

        def timed() -> _Result:
            check()
            self._metrics.computing.inc()
            start = time.perf_counter()
            try:
                return work(check)
            finally:
                taken = time.perf_counter() - start
                self._recent += 0.1 * (taken - self._recent)
                self._metrics.compute.labels(route).observe(taken)
                self._metrics.computing.dec()

        loop = asyncio.get_running_loop()
        future = self._executor.submit(timed)
        self._count(+1)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._count, -1))
        outcome = asyncio.wrap_future(future)
        # Of a thread that ends after its reader has gone: the exception is known, and nobody's business.
        outcome.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.wait_for(asyncio.shield(outcome), seconds)
        except TimeoutError:
            raise Problem(
                503,
                f"the request took longer than {seconds:g} seconds; send a smaller one or try again later",
                retry_after=self._wait(),
                reason="timeout",
            ) from None
        finally:
            stop.set()
            future.cancel()

    def close(self) -> None:
        """Wait for the threads and end them."""
        self._executor.shutdown(cancel_futures=True)

    def _count(self, change: int) -> None:
        self._taken += change
        self._metrics.waiting.set(max(0, self._taken - self._threads))

    def _wait(self) -> int:
        """Return about how many seconds the queue needs to empty."""
        return max(1, min(60, round(self._taken * self._recent / self._threads)))
