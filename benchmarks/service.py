"""Load on ``ferkit serve`` over the loopback: throughput, latency, memory, hostile input, kill -9."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench import ASTRONAUT
from PIL import Image

JPEG = b"image/jpeg"
PEER_VENV = Path("bench-out/peer-venv")


@dataclass
class Figures:
    """What clients saw in a stretch of time."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    elapsed: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Return requests/s of the answered (200) requests, and percentiles of their times in ms."""
        p50, p99 = np.percentile(self.seconds, [50, 99]) * 1000 if self.seconds else (None, None)
        return {
            "requests_per_second": round(len(self.seconds) / self.elapsed, 1),
            "p50_ms": None if p50 is None else round(float(p50), 1),
            "p99_ms": None if p99 is None else round(float(p99), 1),
            "statuses": dict(sorted(self.statuses.items())),
        }


class Server:
    """A server as a process on a free port of the loopback.

    Args:
        command: The command without its port.

    Raises:
        RuntimeError: If it does not start.
    """

    def __init__(self, command: Sequence[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen([*command, "--port", str(self.port)], start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if asyncio.run(request(self.port, b"GET", b"/healthz"))[0] == 200:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.2)
        raise RuntimeError("the server did not start")

    def memory(self) -> float:
        """Return the resident memory of the server in MiB (Linux)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(60)

    def kill(self) -> None:
        """Kill it; its processes of jobs are killed too."""
        children = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        self.process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self.process.wait(60)


def ferkit_server(folder: Path, *options: str) -> Server:
    """Start ``ferkit serve``."""
    limits = ["--client-requests", "100000", "--connections", "5000", "--log-level", "warning"]
    command = [sys.executable, "-m", "ferkit", "serve", "--jobs-folder", str(folder)]
    return Server([*command, *limits, *options])


def peer_server(environment: Path, *options: str) -> Server:
    """Start the Flask server around ``fer``."""
    from peer import interpreter

    script = Path(__file__).with_name("peer_server.py")
    return Server([str(interpreter(environment)), str(script), *options])


async def request(
    port: int, method: bytes, path: bytes, body: bytes = b"", kind: bytes = JPEG, extra: bytes = b""
) -> tuple[int, bytes]:
    """Send one request on a connection of its own; return status and body. 0: the connection was closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await exchange(reader, writer, method, path, body, kind, extra)
    finally:
        writer.close()


async def exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    method: bytes,
    path: bytes,
    body: bytes = b"",
    kind: bytes = JPEG,
    extra: bytes = b"",
) -> tuple[int, bytes]:
    """Send one request on an open connection and read the response."""
    writer.write(
        b"%b %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b\r\n%b"
        % (method, path, kind, len(body), extra, body)
    )
    try:
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length")
            ),
            0,
        )
        content = await reader.readexactly(length)
        if b"\r\nconnection: close" in head.lower():
            writer.close()
        return int(head.split(b" ", 2)[1]), content
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, b""


async def load(port: int, clients: int, seconds: float, body: bytes) -> Figures:
    """Let clients send photos one after the other, each on its own connection."""
    figures = Figures()
    end = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            start = time.perf_counter()
            status, _ = await exchange(reader, writer, b"POST", b"/v1/predict", body)
            figures.statuses[status] += 1
            if status == 200:
                figures.seconds.append(time.perf_counter() - start)
            elif status == 503:
                await asyncio.sleep(0.05 + random.random() * 0.1)
            if status == 0 or writer.is_closing():
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    figures.elapsed = time.perf_counter() - begin
    return figures


def loads(server: Server, clients: Sequence[int], seconds: float, photo: bytes) -> dict[int, Any]:
    """Return the figures and the memory for each number of clients."""
    found = {}
    for count in clients:
        figures = asyncio.run(load(server.port, count, seconds, photo))
        found[count] = {**figures.summary(), "memory_mib": round(server.memory(), 1)}
    return found


def hostile(photo: bytes, bomb: bytes, seed: int) -> Iterator[tuple[bytes, bytes, bytes, bytes]]:
    """Yield method, path, body and content type of input that is meant to harm, for ever."""
    rng = random.Random(seed)
    form = b"multipart/form-data; boundary=x"
    while True:
        mutated = bytearray(photo)
        for _ in range(rng.randrange(1, 40)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        yield b"POST", b"/v1/predict", bytes(mutated), JPEG
        yield b"POST", b"/v1/predict", photo[: rng.randrange(len(photo))], JPEG
        yield b"POST", b"/v1/predict", bomb, b"image/png"
        yield b"POST", b"/v1/predict", rng.randbytes(1000), form
        yield b"POST", b"/v1/predict?taxonomy=" + b"x" * rng.randrange(80), photo, JPEG
        yield b"POST", b"/v1/videos", rng.randbytes(3000), b"video/mp4"
        yield b"GET", b"/v1/videos/" + rng.randbytes(16).hex().encode(), b"", JPEG
        yield b"DELETE", b"/%2e%2e/%2e%2e/etc/passwd", b"", JPEG


async def soak(server: Server, minutes: float, photo: bytes) -> dict[str, Any]:
    """Full load mixed with hostile input."""
    statuses: Counter[int] = Counter()
    memory = [server.memory()]
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "PNG")
    bomb = buffer.getvalue()
    end = time.monotonic() + minutes * 60

    async def attacker(seed: int) -> None:
        for method, path, body, kind in hostile(photo, bomb, seed):
            if time.monotonic() > end:
                return
            with contextlib.suppress(ConnectionError):
                statuses[(await request(server.port, method, path, body, kind))[0]] += 1

    async def watcher() -> None:
        while time.monotonic() < end:
            memory.append(server.memory())
            await asyncio.sleep(max(0.2, minutes * 60 / 100))

    others = asyncio.gather(*(attacker(seed) for seed in range(4)), watcher())
    figures = await load(server.port, 8, minutes * 60, photo)
    await others
    third = max(1, len(memory) // 3)
    everything = statuses + figures.statuses
    return {
        **figures.summary(),
        "hostile_statuses": dict(sorted(statuses.items())),
        "unintended_5xx": sum(n for status, n in everything.items() if status >= 500 and status != 503),
        "memory_mib_first_third": round(float(np.median(memory[:third])), 1),
        "memory_mib_last_third": round(float(np.median(memory[-third:])), 1),
        "memory_mib_peak": round(max(memory), 1),
    }


def kill(folder: Path, clip: bytes, jobs: int, options: Sequence[str]) -> dict[str, Any]:
    """Kill the server and its processes while jobs run; all jobs must be done after a restart, none twice."""
    server = ferkit_server(folder, *options, "--jobs-waiting", str(jobs))
    ids = []
    for _ in range(jobs):
        status, body = asyncio.run(
            request(server.port, b"POST", b"/v1/videos?annotated=false", clip, b"video/mp4")
        )
        assert status == 202, body
        ids.append(json.loads(body)["id"])
    while not any(_job(server, one)["state"] == "running" for one in ids):
        time.sleep(0.05)
    done_before = {one for one in ids if _job(server, one)["state"] == "done"}
    server.kill()
    server = ferkit_server(folder, *options, "--jobs-waiting", str(jobs))
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        states = Counter(_job(server, one)["state"] for one in ids)
        if states["done"] + states["failed"] == jobs:
            break
        time.sleep(0.5)
    attempts = Counter(_job(server, one)["attempts"] for one in ids)
    server.stop()
    return {"jobs": jobs, "states": dict(states), "attempts": dict(attempts), "done_before": len(done_before)}


def _job(server: Server, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        asyncio.run(request(server.port, b"GET", f"/v1/videos/{job_id}".encode()))[1]
    )
    return found


async def stream(port: int, frames: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Send frames as the page does, two under way at most; return frames/s and the latency in ms."""
    from websockets.asyncio.client import connect

    latencies: list[float] = []
    sent: dict[int, float] = {}
    index = 0
    async with connect(f"ws://127.0.0.1:{port}/v1/stream", compression=None, proxy=None) as line:
        await line.send(frames[0])
        await line.recv()
        index = 1
        begin = time.perf_counter()
        while time.perf_counter() < begin + seconds:
            while len(sent) < 2:
                sent[index] = time.perf_counter()
                await line.send(frames[index % len(frames)])
                index += 1
            answer = json.loads(await line.recv())
            latencies.append(time.perf_counter() - sent[answer["index"]])
            sent = {k: v for k, v in sent.items() if k > answer["index"]}
        elapsed = time.perf_counter() - begin
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return {
        "frames_per_second": round(len(latencies) / elapsed, 1),
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
    }


def page(port: int, camera: Path, seconds: float) -> dict[str, Any]:
    """Let Chromium show a camera on the page; return medians of the frames/s and the latency that it shows.

    The camera is a file with 30 frames per second of 640 x 480 pixels. The latency is from the camera's
    frame to the drawn result, in ms.

    Raises:
        RuntimeError: If Chromium is not installed.
    """
    import av
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise RuntimeError("the part page needs the system's package chromium")
    with camera.open("wb") as file:
        file.write(b"YUV4MPEG2 W640 H480 F30:1 Ip A1:1 C420jpeg\n")
        for k in range(30):
            moved = portrait().transform((640, 480), Image.Transform.AFFINE, (1, 0, -2 * k, 0, 1, 0))
            frame = av.VideoFrame.from_ndarray(np.asarray(moved), format="rgb24").reformat(format="yuv420p")
            file.write(b"FRAME\n" + frame.to_ndarray().tobytes())
    devices = ("--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={camera}")
    alone = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
    url = f"http://127.0.0.1:{port}"
    shown = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*alone, *devices])
        with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
            context.grant_permissions(["camera"], origin=url)
            tab = context.new_page()
            tab.goto(f"{url}/#camera")
            tab.wait_for_selector(".face", timeout=120_000)
            for _ in range(max(1, round(seconds))):
                tab.wait_for_timeout(1000)
                figures = [tab.inner_text(name) for name in ("#f-rate", "#f-latency")]
                if all(figure.replace(".", "").isdigit() for figure in figures):
                    shown.append([float(figure) for figure in figures])
        browser.close()
    rate, latency = np.median(shown, axis=0)
    return {"frames_per_second": float(rate), "latency_ms": float(latency), "samples": len(shown)}


def portrait() -> Image.Image:
    """Return a picture of 640 x 480 with one face: the astronaut."""
    face = Image.open(ASTRONAUT).convert("RGB")
    picture = Image.new("RGB", (640, 480), (60, 70, 80))
    picture.paste(face.resize((440, 440)), (100, 20))
    return picture


def jpeg(picture: Image.Image) -> bytes:
    """Return a picture as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def clip(frames: int) -> bytes:
    """Return a clip of a moving face."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as target:
        video: Any = target.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = 640, 480, "yuv420p"
        for k in range(frames):
            moved = portrait().transform((640, 480), Image.Transform.AFFINE, (1, 0, -(k % 40), 0, 1, 0))
            target.mux(video.encode(av.VideoFrame.from_ndarray(np.asarray(moved), format="rgb24")))
        target.mux(video.encode(None))
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the chosen parts, print them as JSON and return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=("load", "soak", "kill", "stream", "page", "peer"))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--seconds", type=float, default=20, help="of each load, stream and page")
    parser.add_argument("--minutes", type=float, default=10, help="of the soak")
    parser.add_argument("--jobs", type=int, default=6, help="of the kill")
    parser.add_argument("--frames", type=int, default=90, help="of a job's clip")
    parser.add_argument(
        "--peer-venv", type=Path, default=PEER_VENV, help="environment of fer (make peer) with Flask"
    )
    parser.add_argument("--photo", type=Path, help="sent in place of a picture of 640 x 480")
    parser.add_argument(
        "--option", action="append", default=[], help="of ferkit serve, such as --option=--waiting=8"
    )
    parser.add_argument("--out", type=Path, help="write the figures to this file as well")
    given = parser.parse_args(arguments)
    photo = given.photo.read_bytes() if given.photo else jpeg(portrait())
    options = given.option
    result: dict[str, Any] = {"cores": os.cpu_count(), "load_average": os.getloadavg(), "options": options}
    with tempfile.TemporaryDirectory() as folder:
        if "kill" in given.parts:
            result["kill"] = kill(Path(folder) / "kill", clip(given.frames), given.jobs, options)
        if set(given.parts) - {"kill", "peer"}:
            server = ferkit_server(Path(folder) / "jobs", *options)
            try:
                if "load" in given.parts:
                    result["load"] = loads(server, given.clients, given.seconds, photo)
                if "stream" in given.parts:
                    moved = (
                        portrait().transform((640, 480), Image.Transform.AFFINE, (1, 0, -k, 0, 1, 0))
                        for k in [*range(30), *range(30, 0, -1)]
                    )
                    frames = [jpeg(picture) for picture in moved]
                    result["stream"] = asyncio.run(stream(server.port, frames, given.seconds))
                if "page" in given.parts:
                    result["page"] = page(server.port, Path(folder) / "camera.y4m", given.seconds)
                if "soak" in given.parts:
                    result["soak"] = asyncio.run(soak(server, given.minutes, photo))
            finally:
                server.stop()
        if "peer" in given.parts:
            for name, chosen in {"haar": [], "mtcnn": ["--mtcnn"]}.items():
                server = peer_server(given.peer_venv, *chosen)
                try:
                    result[f"fer, {name}"] = loads(server, given.clients, given.seconds, photo)
                finally:
                    server.stop()
    text = json.dumps(result, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")
    return result


if __name__ == "__main__":
    main()
