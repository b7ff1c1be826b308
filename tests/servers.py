"""A running service for tests: in a thread of the tests, or as a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from ferkit.service.app import create_app
from ferkit.service.server import listen, make_server
from ferkit.service.settings import Settings
from samples import sample


def settings_for(folder: Path, **given: Any) -> Settings:
    """Settings for a test: a free port, jobs in ``folder``, no process of jobs."""
    return Settings(**{"port": 0, "jobs_folder": folder, "job_workers": 0, "workers": 2, **given})


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[tuple[str, Any]]:
    """Serve in a thread; yields the URL and the shared parts of the application."""
    with listen(settings) as listening:
        app = create_app(settings)
        server = make_server(app, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive(), 60)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", app.state.service
        finally:
            server.should_exit = True
            thread.join()


class Process:
    """``ferkit serve`` as a process.

    Args:
        folder: Folder of jobs.
        options: More options of the command line.
    """

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "ferkit", "serve", "--port", str(port), "--jobs-folder", str(folder)]
        self.process = subprocess.Popen(
            [*command, *options],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert self.process.stderr is not None
        self.lines: list[str] = []
        self.url = ""
        for line in self.process.stderr:
            self.lines.append(line)
            with contextlib.suppress(json.JSONDecodeError):
                if json.loads(line).get("event") == "serving":
                    self.url = json.loads(line)["url"].rstrip("/")
                    break
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()
        wait_until(self._answers, 60)

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError("".join(self.lines))
        try:
            return httpx.get(f"{self.url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def _drain(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def stop(self) -> int:
        """End it as systemd would, and return its exit status."""
        self.process.terminate()
        return self._ended()

    def kill(self) -> None:
        """End it as the kernel would for lack of memory."""
        self.process.kill()
        self._ended()

    def _ended(self) -> int:
        status = self.process.wait(60)
        self._reader.join(30)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


def wait_until(condition: Any, seconds: float = 30) -> Any:
    """Wait for something true and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"nothing happened for {seconds} seconds")


def portrait() -> Image.Image:
    """A real face: the example photo."""
    with Image.open(sample("astronaut.jpg")) as opened:
        return opened.convert("RGB")


def encoded(picture: Image.Image, kind: str = "JPEG") -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def plain(width: int = 64, height: int = 48, level: int = 128) -> bytes:
    """A gray picture as PNG."""
    return encoded(Image.fromarray(np.full((height, width, 3), level, np.uint8)), "PNG")
