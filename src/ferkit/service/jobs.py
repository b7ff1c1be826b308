"""Jobs on clips: a folder each, and a queue of huey that says which is next."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from huey import Huey, RedisHuey, SqliteHuey
from huey.registry import Message
from huey.serializer import Serializer
from pydantic import BaseModel, Field, ValidationError

from ferkit.core.errors import FerkitError
from ferkit.core.files import write_bytes
from ferkit.service.settings import Settings

ATTEMPTS = 2
"""A job whose process dies is run again, once."""

State = Literal["queued", "running", "done", "failed", "cancelled"]
FINISHED: tuple[State, ...] = ("done", "failed", "cancelled")

RESULTS = {
    "jsonl": ("frames.jsonl", "application/x-ndjson"),
    "csv": ("frames.csv", "text/csv; charset=utf-8"),
    "timeline": ("timeline.png", "image/png"),
    "annotated": ("annotated.mp4", "video/mp4"),
}
"""File and media type of every result."""

LIVE = "live.jsonl"
"""Frames that are done, written while a job runs."""

_NAME = "ferkit"
_LIVE_BYTES = 1 << 20
_ID = re.compile(r"[0-9a-f]{32}")
_JOB, _CLIP, _LOCK, _CANCEL, _DELETE = "job.json", "clip", "lock", "cancel", "delete"


class Job(BaseModel):
    """The state of a job, as its folder records it."""

    id: str
    state: State = "queued"
    name: str | None = None
    taxonomy: str | None = None
    min_face: int | None = None
    tta: Literal["none", "flip", "ten-crop"] = "none"
    fps: float | None = None
    annotated: bool = True
    created: float = Field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    attempts: int = 0
    frames: int = 0
    share: float | None = None
    error: str | None = None
    summary: dict[str, Any] | None = None


class QueueError(FerkitError):
    """The queue does not take a job now."""


class _Json(Serializer):  # type: ignore[misc]
    """Messages as JSON: whoever can write into the queue can then not run code, as pickles would let them."""

    def _serialize(self, data: Any) -> bytes:
        return json.dumps(data._asdict() if isinstance(data, Message) else data, default=str).encode()

    def _deserialize(self, data: bytes) -> Any:
        value = json.loads(bytes(data))
        if isinstance(value, dict) and "retries" in value:
            return Message(**{**value, "args": tuple(value["args"])})
        return value


def open_queue(settings: Settings) -> Huey:
    """Return the queue.

    Raises:
        FerkitError: If Redis cannot be reached, or the folder of jobs cannot be written.
    """
    options = {"results": False, "serializer": _Json()}
    if settings.queue is None:
        return SqliteHuey(_NAME, filename=str(settings.folder / "queue.db"), **options)
    queue = RedisHuey(_NAME, url=settings.queue, **options)
    try:
        queue.storage.conn.ping()
    except _queue_errors(settings) as error:
        url = urlsplit(settings.queue)  # without the password
        place = url.netloc.rpartition("@")[2] or url.path
        raise FerkitError(f"cannot reach the queue at {place}: {error}") from error
    return queue


def _queue_errors(settings: Settings) -> tuple[type[Exception], ...]:
    """Return what the queue raises when it is out of reach."""
    if settings.queue is None:
        return (sqlite3.Error,)
    from redis.exceptions import RedisError

    return (RedisError,)


class Jobs:
    """The jobs of a folder. Its methods block: the event loop calls them in a thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.folder
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise FerkitError(f"cannot make the folder of jobs: {error}") from error
        self.queue = open_queue(settings)
        self._queue_errors = _queue_errors(settings)
        self._work: Callable[[str], None] | None = None
        self.run = self.queue.task(name="process")(self._process)

    def serve(self, work: Callable[[str], None]) -> None:
        """Make ``work`` what the consumer of this process calls with the id of each job."""
        self._work = work

    def new(self) -> Path:
        """Make the folder of a new job and return it; it is no job yet, and :meth:`submit` makes it one."""
        folder = self._folder / uuid.uuid4().hex
        folder.mkdir(mode=0o700)
        return folder

    def drop(self, folder: Path) -> None:
        """Remove a folder that becomes no job."""
        shutil.rmtree(folder, ignore_errors=True)

    def submit(self, job: Job) -> None:
        """Queue a job whose clip is in its folder; raise QueueError if the queue is out of reach."""
        self.save(job)
        try:
            self.run(job.id)
        except self._queue_errors as error:
            raise QueueError("the queue of jobs cannot be reached") from error

    def save(self, job: Job) -> None:
        """Write the state of a job, in one step."""
        write_bytes(self._folder / job.id / _JOB, job.model_dump_json().encode())

    def folder(self, job_id: str) -> Path:
        """Return the folder of a job."""
        return self._folder / job_id

    def clip(self, job_id: str) -> Path:
        """Return the clip of a job."""
        return self._folder / job_id / _CLIP

    def get(self, job_id: str) -> Job | None:
        """Return a job; None if there is none, it was deleted, or its state is damaged."""
        folder = self._folder / job_id
        if not _ID.fullmatch(job_id) or (folder / _DELETE).exists():
            return None
        try:
            return Job.model_validate_json((folder / _JOB).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def live_frames(self, job_id: str, offset: int) -> bytes:
        """Return complete JSON lines of the frames that are done, from a byte offset on; 1 MiB at most."""
        try:
            with (self._folder / job_id / LIVE).open("rb") as file:
                file.seek(offset)
                content = file.read(_LIVE_BYTES)
        except FileNotFoundError:
            return b""
        return content[: content.rfind(b"\n") + 1]

    def all(self) -> Iterator[Job]:
        """Yield every job."""
        for folder in self._folder.iterdir():
            if (job := self.get(folder.name)) is not None:
                yield job

    def counts(self) -> Counter[str]:
        """Return the number of jobs in each state."""
        return Counter(job.state for job in self.all())

    def cancel(self, job_id: str) -> Job | None:
        """Cancel a job: at once if it waits, at its next frame if it runs."""
        job = self.get(job_id)
        if job is None or job.state in FINISHED:
            return job
        (self._folder / job_id / _CANCEL).touch()
        with self.claimed(job_id) as mine:
            if mine and (job := self.get(job_id)) is not None and job.state not in FINISHED:
                self.finish(job, "cancelled")
        return self.get(job_id)

    def delete(self, job_id: str) -> bool:
        """Delete a job and its results; one that runs stops at its next frame. Return whether it existed."""
        if self.get(job_id) is None:
            return False
        (self._folder / job_id / _CANCEL).touch()
        (self._folder / job_id / _DELETE).touch()
        self._remove(job_id)
        return True

    def wants_stop(self, job_id: str) -> bool:
        """Return whether a job was cancelled or deleted."""
        return not self._folder.joinpath(job_id).exists() or (self._folder / job_id / _CANCEL).exists()

    def finish(self, job: Job, state: State, error: str | None = None) -> None:
        """Write the end of a job; its clip is removed."""
        job.state, job.error, job.finished = state, error, time.time()
        if state == "done":
            job.share = 1.0
        self.clip(job.id).unlink(missing_ok=True)
        self.save(job)

    @contextlib.contextmanager
    def claimed(self, job_id: str) -> Iterator[bool]:
        """Hold the run lock of a job, freed by the system when a process dies; yield whether it was free."""
        lock = FileLock(self._folder / job_id / _LOCK, blocking=False)
        try:
            lock.acquire()
        except (Timeout, OSError):
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def tidy(self) -> None:
        """Queue jobs again whose process died, and remove expired, deleted and excess jobs."""
        waiting = {task.args[0] for task in self.queue.pending()}
        finished = []
        now = time.time()
        for folder in self._folder.iterdir():
            if not _ID.fullmatch(folder.name):
                continue
            job = self.get(folder.name)
            if job is None:
                # An upload that still runs writes to its clip, which does not change the time of the folder.
                with contextlib.suppress(FileNotFoundError):
                    written = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                    if (folder / _DELETE).exists() or now - written > 3600:
                        self._remove(folder.name)
            elif job.state in FINISHED:
                finished.append(job)
            elif job.id not in waiting:
                self._requeue(job.id)
        finished.sort(key=lambda job: job.finished or 0, reverse=True)
        for rank, job in enumerate(finished):
            age = now - (job.finished or 0)
            if rank >= self._settings.jobs_kept or age > self._settings.job_hours * 3600:
                self._remove(job.id)

    def _requeue(self, job_id: str) -> None:
        with self.claimed(job_id) as free:
            job = self.get(job_id) if free else None
            if job is None or job.state in FINISHED:
                return
            if (self._folder / job_id / _CANCEL).exists():
                self.finish(job, "cancelled")
            elif job.attempts >= ATTEMPTS:
                self.finish(
                    job,
                    "failed",
                    f"the process that read the clip ended {job.attempts} times before it was done; the clip "
                    "may be damaged, or too large for the memory",
                )
            else:
                job.state = "queued"
                self.save(job)
                self.run(job_id)

    def _remove(self, job_id: str) -> None:
        with self.claimed(job_id) as free:
            if free:
                shutil.rmtree(self._folder / job_id, ignore_errors=True)

    def _process(self, job_id: str) -> None:
        if self._work is not None:
            self._work(job_id)
