"""The process that runs jobs: a huey consumer with one thread. A clip that crashes it stops no request."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, TextIO, TypeAlias

from huey.consumer import Consumer

from ferkit.core.errors import FerkitError
from ferkit.service.engine import Engine, Options, process_clip
from ferkit.service.jobs import ATTEMPTS, FINISHED, LIVE, RESULTS, Job, Jobs
from ferkit.service.security import JsonLines
from ferkit.service.settings import Settings
from ferkit.video.process import VideoOutputs

_SAVE_EVERY = 0.5  # seconds between notes of a job's progress, and between checks whether it is to stop
_Progress: TypeAlias = Callable[[int, float | None, dict[str, Any]], None]
_log = logging.getLogger("ferkit.service")


class Worker:
    """Runs one job at a time.

    ``stopping`` is set when the process is to end: the running job then goes back into the queue.
    """

    def __init__(self, settings: Settings, stopping: threading.Event) -> None:
        self._settings = settings
        self._stopping = stopping
        self.jobs = Jobs(settings)
        self.jobs.serve(self._run)
        self._engine = Engine(settings)

    def _run(self, job_id: str) -> None:
        with self.jobs.claimed(job_id) as mine:
            job = self.jobs.get(job_id) if mine else None
            # A job can be in the queue twice: the lock and its state let only one of the two run.
            if job is None or job.state in FINISHED or self._stopping.is_set():
                return
            if self.jobs.wants_stop(job_id):
                self.jobs.finish(job, "cancelled")
                return
            if job.attempts >= ATTEMPTS:
                return  # the server says why when it tidies
            job.state, job.attempts, job.started = "running", job.attempts + 1, time.time()
            job.frames, job.share = 0, None
            self.jobs.save(job)
            self._process(job)

    def _process(self, job: Job) -> None:
        folder = self.jobs.folder(job.id)
        files = {name: folder / file for name, (file, _) in RESULTS.items()}
        outputs = VideoOutputs(
            clip=files["annotated"] if job.annotated else None,
            csv=files["csv"],
            jsonl=files["jsonl"],
            plot=files["timeline"] if find_spec("matplotlib") else None,  # no part of the extra serve
        )
        clip = self.jobs.clip(job.id)
        try:
            with self._stop_of(job.id) as stop, (folder / LIVE).open("w", encoding="utf-8") as live:
                summary = process_clip(
                    self._engine,
                    clip,
                    outputs,
                    Options(job.taxonomy, job.min_face, job.tta),
                    self._settings,
                    fps=job.fps,
                    progress=self._progress(job, stop, live),
                    stop=stop,
                )
        except FerkitError as error:
            if not stop.is_set():
                message = str(error).replace(str(clip), job.name or "the clip")
                self.jobs.finish(job, "failed", " ".join(message.split()))
                return
            summary = None
        if self._stopping.is_set() and stop.is_set() and not self.jobs.wants_stop(job.id):
            job.state, job.attempts = "queued", job.attempts - 1  # not the clip's fault
            self.jobs.save(job)
            self.jobs.run(job.id)
        elif self.jobs.wants_stop(job.id):
            self.jobs.finish(job, "cancelled")
        elif stop.is_set():
            self.jobs.finish(
                job, "failed", f"the job took longer than {self._settings.job_seconds:g} seconds"
            )
        else:
            job.summary = summary
            self.jobs.finish(job, "done")
        _log.info("job", extra={"fields": {"id": job.id, "state": job.state, "frames": job.frames}})

    @contextlib.contextmanager
    def _stop_of(self, job_id: str) -> Iterator[threading.Event]:
        """Yield an event that is set when a job is to stop, also while no frame of it has a result."""
        stop, done = threading.Event(), threading.Event()
        deadline = time.monotonic() + self._settings.job_seconds

        def watch() -> None:
            while not done.wait(_SAVE_EVERY):
                if self._stopping.is_set() or time.monotonic() > deadline or self.jobs.wants_stop(job_id):
                    stop.set()
                    return

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield stop
        finally:
            done.set()
            thread.join()

    def _progress(self, job: Job, stop: threading.Event, live: TextIO) -> _Progress:
        saved = 0.0

        def progress(frames: int, share: float | None, frame: dict[str, Any]) -> None:
            nonlocal saved
            job.frames, job.share = frames, share
            live.write(json.dumps(frame, allow_nan=False) + "\n")
            now = time.monotonic()
            if now - saved < _SAVE_EVERY:
                return
            saved = now
            live.flush()
            if not stop.is_set():
                self.jobs.save(job)

        return progress


class _Consumer(Consumer):  # type: ignore[misc]
    """A consumer that tells the running job when it stops."""

    stopping: threading.Event

    def stop(self, graceful: bool = False) -> None:
        self.stopping.set()
        super().stop(graceful)


def main() -> None:
    """Run jobs until the process is told to stop, or its parent ends. The settings come from stdin."""
    settings = Settings(**json.loads(sys.stdin.readline()))
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    _log.setLevel(settings.log_level.upper())
    stopping = threading.Event()
    worker = Worker(settings, stopping)
    consumer = _Consumer(worker.jobs.queue, workers=1, periodic=False, max_delay=0.5, graceful_signal="TERM")
    consumer.stopping = stopping

    def end_with_parent() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    consumer.run()


if __name__ == "__main__":
    main()
