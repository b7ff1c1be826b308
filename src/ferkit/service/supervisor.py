"""What runs beside the requests: the processes of jobs, their restart, and the tidying of old jobs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from ferkit.service.app import Service

_RESTART_SECONDS = 1.0
_STOP_SECONDS = 10.0
_STATES = ("queued", "running", "done", "failed", "cancelled")
_log = logging.getLogger("ferkit.service")


class Supervisor:
    """Starts the processes of jobs, restarts one that ends, and ends them with the server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._processes: list[subprocess.Popen[bytes]] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start."""
        for _ in range(self._service.settings.job_workers):
            self._processes.append(await asyncio.to_thread(self._start))
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes; a running job goes back into the queue."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await asyncio.to_thread(self._end)

    def _start(self) -> subprocess.Popen[bytes]:
        settings = self._service.settings.model_dump(mode="json", exclude={"api_key"})
        process = subprocess.Popen(
            [sys.executable, "-m", "ferkit.service.worker"],
            bufsize=0,  # nothing is left to be written when the pipe is closed
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(settings).encode() + b"\n")
        return process

    async def _watch(self) -> None:
        while True:
            for step in (self._tidy, self._restart):
                try:
                    await asyncio.to_thread(step)
                except Exception as error:  # noqa: BLE001  # a full disk, a queue that restarts: tried again
                    text = f"{type(error).__name__}: {error}"
                    _log.error("cannot supervise jobs", extra={"fields": {"error": text}})
            await asyncio.sleep(_RESTART_SECONDS)

    def _restart(self) -> None:
        for place, process in enumerate(self._processes):
            if process.poll() is not None:
                _log.error("job process ended", extra={"fields": {"status": process.returncode}})
                if process.stdin is not None:
                    process.stdin.close()
                self._processes[place] = self._start()

    def _tidy(self) -> None:
        self._service.jobs.tidy()
        counts = self._service.jobs.counts()
        for state in _STATES:
            self._service.metrics.jobs.labels(state).set(counts[state])

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # its job is found again by its lock, which is free then
                process.wait()
            if process.stdin is not None:
                process.stdin.close()
