"""Clips as jobs: states, results, limits, and what survives a process that dies."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest

from clips import write_clip
from ferkit.core.errors import FerkitError
from ferkit.service.jobs import Job, Jobs
from ferkit.service.settings import Settings
from ferkit.service.worker import Worker
from modelzoo import write_tiny_model
from servers import Process, running, settings_for, wait_until


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


def clip(path: Path, frames: int = 12, sound: str | None = None) -> bytes:
    """A clip of gray frames, as a file's bytes."""
    pictures = (np.full((48, 64, 3), 90 + k % 90, np.uint8) for k in range(frames))
    return write_clip(path, pictures, sound=sound, sound_seconds=frames / 30).read_bytes()


def consume(worker: Worker) -> None:
    """Run what is in the queue, in this thread."""
    while task := worker.jobs.queue.dequeue():
        worker.jobs.queue.execute(task)


def settings(tmp_path: Path, model: Path, **given: Any) -> Settings:
    return settings_for(tmp_path / "jobs", model=str(model), detector="none", **given)


@pytest.fixture
def served(tmp_path: Path, model: Path) -> Iterator[tuple[str, Worker]]:
    """A service without a process of jobs, and a worker in this thread."""
    chosen = settings(tmp_path, model, clip_mib=0.5, clip_frames=40, jobs_waiting=1, body_seconds=1)
    with running(chosen) as (url, _):
        yield url, Worker(chosen, threading.Event())


def submit(url: str, content: bytes, **query: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/videos", files={"clip": ("a clip.mp4", content)}, params=query, timeout=60)


def test_a_clip_becomes_a_job_with_its_results(served: tuple[str, Worker], tmp_path: Path) -> None:
    url, worker = served
    answer = submit(url, clip(tmp_path / "c.mp4", sound="aac"), taxonomy="ferplus")
    assert answer.status_code == 202
    path = url + answer.headers["location"]
    assert answer.json()["state"] == "queued"
    assert httpx.get(f"{path}/csv").status_code == 409
    consume(worker)
    job = httpx.get(path).json()
    assert (job["state"], job["frames"], job["share"], job["attempts"]) == ("done", 12, 1.0, 1)
    assert job["summary"]["taxonomy"] == "ferplus"
    assert not worker.jobs.clip(job["id"]).exists()

    lines = httpx.get(url + job["results"]["jsonl"])
    frames = [json.loads(line) for line in lines.text.splitlines()]
    assert [frame["index"] for frame in frames] == list(range(12))
    live = httpx.get(f"{path}/live")
    assert [json.loads(line) for line in live.text.splitlines()] == frames
    assert httpx.get(f"{path}/live", params={"offset": live.headers["x-next-offset"]}).text == ""

    rows = list(csv.DictReader(io.StringIO(httpx.get(url + job["results"]["csv"]).text)))
    assert len(rows) == 12
    assert "p_contempt" in rows[0]
    annotated = httpx.get(url + job["results"]["annotated"])
    assert "a%20clip-annotated.mp4" in annotated.headers["content-disposition"]
    with av.open(io.BytesIO(annotated.content)) as opened:
        assert len(opened.streams.audio) == 1
        assert sum(1 for _ in opened.decode(video=0)) == 12
    if "timeline" in job["results"]:
        assert httpx.get(url + job["results"]["timeline"]).content.startswith(b"\x89PNG")

    assert httpx.delete(path).status_code == 204
    assert httpx.get(path).status_code == 404
    assert httpx.delete(path).status_code == 404


@pytest.mark.parametrize(
    ("content", "status", "word"),
    [
        (b"", 422, "empty"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", 422, "text"),
        (b"ffconcat version 1.0\nfile 'x.mp4'\n" + b"# " * 40, 422, "text"),
        (b"ffconcat version 1.0\n#\0\nfile clip\n", 422, "playlist"),
        (b"#EXTM3U\n#\0\n#EXTINF:1,\nclip\n", 422, "playlist"),
        (b"<?xml version='1.0'?><MPD>" + b" " * 80, 422, "text"),
        (b"\0" * 600_000, 413, "0.5 MiB"),
    ],
)
def test_what_is_no_clip_is_refused_and_leaves_nothing(
    served: tuple[str, Worker], content: bytes, status: int, word: str
) -> None:
    url, worker = served
    answer = submit(url, content)
    assert answer.status_code == status
    assert word in answer.json()["detail"]
    assert list(worker.jobs.all()) == []
    assert [path.name for path in worker.jobs.folder("").iterdir() if path.is_dir()] == []


def test_a_damaged_clip_fails_with_the_words_of_the_command_line(served: tuple[str, Worker]) -> None:
    url, worker = served
    path = url + submit(url, b"\0\1\2\3" * 500).headers["location"]
    consume(worker)
    job = httpx.get(path).json()
    assert job["state"] == "failed"
    assert "a clip.mp4" in job["error"]
    assert str(worker.jobs.folder(job["id"])) not in job["error"]
    assert httpx.get(f"{path}/csv").status_code == 404


def test_a_playlist_that_the_upload_did_not_refuse_fails(tmp_path: Path, model: Path) -> None:
    worker = Worker(settings(tmp_path, model), threading.Event())
    job = Job(id=worker.jobs.new().name)
    clip(worker.jobs.folder(job.id) / "other.mp4")
    worker.jobs.clip(job.id).write_bytes(b"ffconcat version 1.0\nfile other.mp4\n")
    worker.jobs.submit(job)
    consume(worker)
    found = worker.jobs.get(job.id)
    assert found is not None
    assert found.error == "the clip is a playlist (concat); a video file was expected"


def test_a_clip_with_too_many_frames_fails(served: tuple[str, Worker], tmp_path: Path) -> None:
    url, worker = served
    path = url + submit(url, clip(tmp_path / "c.mp4", 60)).headers["location"]
    consume(worker)
    assert "40 frames" in httpx.get(path).json()["error"]


def test_a_full_queue_gets_503_and_a_cancelled_job_makes_room(
    served: tuple[str, Worker], tmp_path: Path
) -> None:
    url, worker = served
    content = clip(tmp_path / "c.mp4")
    paths = [url + submit(url, content).headers["location"] for _ in range(2)]
    refused = submit(url, content)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
    assert httpx.post(f"{paths[1]}/cancel").json()["state"] == "cancelled"
    assert submit(url, content).status_code == 202
    consume(worker)
    assert [httpx.get(path).json()["state"] for path in paths] == ["done", "cancelled"]


def put(jobs: Jobs, tmp_path: Path, **given: Any) -> Job:
    """A job as the service makes it."""
    job = Job(id=jobs.new().name, **given)
    jobs.clip(job.id).write_bytes(clip(tmp_path / "clip.mp4", 30))
    jobs.submit(job)
    return job


def test_a_job_in_the_queue_twice_runs_once(tmp_path: Path, model: Path) -> None:
    worker = Worker(settings(tmp_path, model), threading.Event())
    job = put(worker.jobs, tmp_path)
    worker.jobs.run(job.id)
    consume(worker)
    found = worker.jobs.get(job.id)
    assert found is not None
    assert (found.state, found.attempts) == ("done", 1)


@pytest.mark.parametrize(
    ("reason", "state", "attempts", "at_last"),
    [("shutdown", "queued", 0, "done"), ("cancel", "cancelled", 1, None), ("job_seconds", "failed", 1, None)],
)
def test_a_job_stops_before_its_first_result_and_is_queued_again_at_a_shutdown(
    tmp_path: Path, model: Path, reason: str, state: str, attempts: int, at_last: str | None
) -> None:
    stopping = threading.Event()
    seconds = 1e-3 if reason == "job_seconds" else 3600
    worker = Worker(settings(tmp_path, model, job_seconds=seconds), stopping)
    job = put(worker.jobs, tmp_path, fps=0.001, annotated=False)
    progress = worker._progress

    def stop_soon(given: Job, stop: threading.Event, *rest: Any) -> Any:
        if reason == "shutdown":
            stopping.set()
        elif reason == "cancel":
            worker.jobs.cancel(job.id)
        assert stop.wait(30)
        return progress(given, stop, *rest)

    worker._progress = stop_soon  # type: ignore[method-assign]
    worker.jobs.queue.execute(worker.jobs.queue.dequeue())
    found = worker.jobs.get(job.id)
    assert found is not None
    assert (found.state, found.attempts, found.frames) == (state, attempts, 0)
    assert found.error == ("the job took longer than 0.001 seconds" if state == "failed" else None)
    consume(Worker(settings(tmp_path, model), threading.Event()))
    found = worker.jobs.get(job.id)
    assert found is not None
    assert found.state == (at_last or state)


def test_a_job_whose_process_died_is_run_again_once(tmp_path: Path, model: Path) -> None:
    jobs = Jobs(settings(tmp_path, model))
    job = put(jobs, tmp_path)
    for attempts, state in ((1, "queued"), (2, "failed")):
        assert jobs.queue.dequeue() is not None
        jobs.save(job.model_copy(update={"state": "running", "attempts": attempts}))
        jobs.tidy()
        found = jobs.get(job.id)
        assert found is not None
        assert found.state == state
    assert found.error is not None
    assert "2 times" in found.error
    assert jobs.queue.pending() == []


def test_a_job_that_runs_is_left_alone(tmp_path: Path, model: Path) -> None:
    jobs = Jobs(settings(tmp_path, model))
    job = put(jobs, tmp_path)
    jobs.queue.dequeue()
    with jobs.claimed(job.id) as mine:
        assert mine
        Jobs(settings(tmp_path, model)).tidy()
    assert jobs.queue.pending() == []


def test_finished_jobs_expire_and_are_limited_in_number(tmp_path: Path, model: Path) -> None:
    jobs = Jobs(settings(tmp_path, model, jobs_kept=2, job_hours=1))
    made = [put(jobs, tmp_path) for _ in range(4)]
    for age, job in enumerate(made):
        jobs.finish(job, "done")
        job.finished = time.time() - (age * 60 if age else 7200)
        jobs.save(job)
    jobs.tidy()
    assert {job.id for job in jobs.all()} == {made[1].id, made[2].id}


def test_a_damaged_job_does_not_keep_the_others_from_expiring(tmp_path: Path, model: Path) -> None:
    jobs = Jobs(settings(tmp_path, model))
    damaged, expired = put(jobs, tmp_path), put(jobs, tmp_path)
    jobs.folder(damaged.id).joinpath("job.json").write_bytes(b"{")
    jobs.finish(expired, "done")
    expired.finished = 0
    jobs.save(expired)
    jobs.tidy()
    assert jobs.get(damaged.id) is None
    assert not jobs.folder(expired.id).exists()


def test_an_upload_is_kept_while_its_clip_is_written(tmp_path: Path, model: Path) -> None:
    jobs = Jobs(settings(tmp_path, model))
    folder = jobs.new()
    written = jobs.clip(folder.name)
    written.write_bytes(b"the first hour of an upload")
    os.utime(folder, (0, 0))
    jobs.tidy()
    assert written.exists()
    os.utime(written, (0, 0))
    jobs.tidy()
    assert not folder.exists()


def test_supervision_goes_on_after_an_error_of_the_queue(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = settings(tmp_path, model)
    with (
        running(chosen) as (_, service),
        contextlib.closing(sqlite3.connect(chosen.folder / "queue.db")) as db,
    ):
        db.execute("ALTER TABLE task RENAME TO away")
        wait_until(lambda: "cannot supervise jobs" in caplog.text)
        job = Job(id=service.jobs.new().name, state="done", finished=0)
        service.jobs.save(job)
        db.execute("ALTER TABLE away RENAME TO task")
        wait_until(lambda: not service.jobs.folder(job.id).exists())


def test_a_clip_is_refused_while_the_queue_is_out_of_reach(
    served: tuple[str, Worker], tmp_path: Path
) -> None:
    url, worker = served
    content = clip(tmp_path / "c.mp4")
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs" / "queue.db")) as db:
        db.execute("ALTER TABLE task RENAME TO away")
        refused = submit(url, content)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
        assert refused.json()["detail"] == "the queue of jobs cannot be reached; try again later"
        assert not list(worker.jobs.all())
        db.execute("ALTER TABLE away RENAME TO task")
    assert submit(url, content).status_code == 202


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A Redis of its own; without the program the test is skipped."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("REDIS ABSENT: install the system's package redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()


def test_machines_share_jobs_through_redis(tmp_path: Path, model: Path) -> None:
    with redis_server(tmp_path) as queue:
        chosen = settings(tmp_path, model, queue=queue)

        def connect() -> Jobs | None:
            with contextlib.suppress(FerkitError):
                return Jobs(chosen)
            return None

        jobs = wait_until(connect)
        first, second = put(jobs, tmp_path), put(jobs, tmp_path)
        for job in (first, second):
            worker = Worker(chosen, threading.Event())
            task = worker.jobs.queue.dequeue()
            assert task.args == (job.id,)
            worker.jobs.queue.execute(task)
        assert [job.state for job in jobs.all()] == ["done", "done"]
        assert jobs.queue.pending() == []


@pytest.mark.parametrize(
    ("queue", "place"),
    [
        ("redis://someone:secret@127.0.0.1:1/0?password=secret", "127.0.0.1:1:"),
        ("unix://someone:secret@/nowhere/redis.sock", "/nowhere/redis.sock:"),
    ],
)
def test_an_unreachable_redis_is_named_without_its_password(
    tmp_path: Path, model: Path, queue: str, place: str
) -> None:
    with pytest.raises(FerkitError, match=f"queue at {place}") as error:
        Jobs(settings(tmp_path, model, queue=queue))
    assert "secret" not in str(error.value)


@pytest.mark.slow
def test_jobs_go_on_after_kill_9_and_the_server_ends_cleanly(tmp_path: Path, model: Path) -> None:
    options = ("--model", str(model), "--detector", "none")
    server = Process(tmp_path / "jobs", *options)
    content = clip(tmp_path / "c.mp4", 500)
    paths = [submit(server.url, content).headers["location"] for _ in range(2)]
    wait_until(lambda: httpx.get(server.url + paths[0]).json()["state"] == "running")
    server.kill()
    again = Process(tmp_path / "jobs", *options)
    try:
        jobs = [
            wait_until(
                lambda path=path: (j := httpx.get(again.url + path).json())["state"] == "done" and j, 60
            )
            for path in paths
        ]
        assert [job["frames"] for job in jobs] == [500, 500]
        assert all(job["attempts"] <= 2 for job in jobs)
    finally:
        status = again.stop()
    assert status in (0, -15)
