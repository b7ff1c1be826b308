"""Live cameras: the newest frame, tracked and smoothed, through an interface that a clip can play as well."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import modelzoo
from ferkit import Recognizer
from ferkit.cli import run
from ferkit.core.errors import VideoError
from ferkit.core.images import load_image
from ferkit.detect import Detection
from ferkit.video import live
from ferkit.video.recognition import FrameResult, VideoReading
from samples import ASTRONAUT

Picture = NDArray[np.uint8]


class LoopedClip:
    """A camera that shows ``count`` pictures, again and again; ``wait`` runs before each but the first."""

    name = "camera:fake"

    def __init__(
        self, pictures: Sequence[Picture], count: int, wait: Callable[[int], None] = time.sleep
    ) -> None:
        self.pictures, self.count, self.wait = pictures, count, wait
        self.given = 0
        self.closed = False

    def read(self) -> Picture | None:
        assert not self.closed
        if self.given == self.count:
            return None
        if self.given:
            self.wait(0)
        self.given += 1
        return self.pictures[(self.given - 1) % len(self.pictures)]

    def close(self) -> None:
        self.closed = True


class Broken(LoopedClip):
    """Fails after its last picture."""

    def read(self) -> Picture | None:
        picture = super().read()
        if picture is None:
            raise VideoError("camera:fake fails: unplugged")
        return picture


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    """The astronaut, drifting to the right and back."""
    photo = load_image(ASTRONAUT)[:320, 60:380]
    return [np.roll(photo, 2 * min(k, 16 - k), axis=1) for k in range(16)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return modelzoo.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def recognizer(model: Path) -> Recognizer:
    return Recognizer(model)


def step_by_step(reading: VideoReading, turn: threading.Semaphore) -> list[FrameResult]:
    """The results of a camera that gives its next picture when the last one has its result."""
    results = []
    for result in reading:
        results.append(result)
        turn.release()
    return results


def test_each_frame_of_a_slow_camera_is_recognized_and_the_face_keeps_its_track(
    recognizer: Recognizer, pictures: list[Picture]
) -> None:
    turn = threading.Semaphore(0)
    camera = LoopedClip(pictures, 40, lambda _: turn.acquire() and None)
    reading = recognizer.live(camera, keep_pictures=True)
    assert (reading.info.source, reading.info.width, reading.info.height) == ("camera:fake", 320, 320)
    results = step_by_step(reading, turn)
    assert [frame.index for frame in results] == list(range(40))
    assert {face.track for frame in results for face in frame.faces} == {1}
    assert all(len(frame.faces) == 1 for frame in results)
    assert not all(face.detected for frame in results for face in frame.faces)  # optical flow in between
    times = [frame.time for frame in results]
    assert times[0] == 0
    assert times == sorted(times)
    assert [frame.duration for frame in results[1:]] == pytest.approx(np.diff(times).tolist())
    assert (reading.notes, reading.damaged, camera.closed) == ((), False, True)


def test_expressions_are_smoothed_over_the_track(recognizer: Recognizer, pictures: list[Picture]) -> None:
    turn = threading.Semaphore(0)
    results = step_by_step(recognizer.live(LoopedClip(pictures, 12, lambda _: turn.acquire() and None)), turn)
    raw = np.array([list(frame.faces[0].raw.probabilities.values()) for frame in results])
    smooth = np.array([list(frame.faces[0].face.probabilities.values()) for frame in results])
    assert np.allclose(raw[0], smooth[0])
    assert np.abs(np.diff(smooth, axis=0)).sum() < np.abs(np.diff(raw, axis=0)).sum()


class Slow:
    """A detector that lets the camera run on to its end before it answers."""

    name = "slow"

    def __init__(self, camera: LoopedClip) -> None:
        self.camera = camera

    def detect(self, image: Picture) -> tuple[Detection, ...]:
        while not self.camera.closed:
            time.sleep(0.001)
        return ()


def test_the_newest_frame_is_next_and_the_others_are_counted(model: Path, pictures: list[Picture]) -> None:
    camera = LoopedClip(pictures, 50)
    reading = Recognizer(model, detector=Slow(camera)).live(camera)
    indices = [frame.index for frame in reading]
    assert indices[-1] == 49  # the last one is shown, however late
    assert len(indices) <= 2
    assert reading.notes == (f"{50 - len(indices)} of 50 frames came during the work on others",)


def test_a_camera_that_fails_ends_the_results_and_says_why(
    recognizer: Recognizer, pictures: list[Picture]
) -> None:
    turn = threading.Semaphore(0)
    reading = recognizer.live(Broken(pictures, 3, lambda _: turn.acquire() and None))
    assert len(step_by_step(reading, turn)) == 3
    assert reading.notes == ("camera:fake fails: unplugged",)
    assert reading.damaged


@pytest.mark.parametrize("camera", [LoopedClip([], 0), Broken([], 0)])
def test_a_camera_without_a_frame_is_refused_and_closed(recognizer: Recognizer, camera: LoopedClip) -> None:
    with pytest.raises(VideoError, match="camera:fake"):
        recognizer.live(camera)
    assert camera.closed


def test_closing_or_stopping_ends_an_endless_camera(recognizer: Recognizer, pictures: list[Picture]) -> None:
    stop = threading.Event()
    for end in (stop.set, None):
        camera = LoopedClip(pictures, sys.maxsize, lambda _: time.sleep(0.001))
        with recognizer.live(camera, stop=stop) as reading:
            next(reading)
            if end is not None:
                end()
                assert len(list(reading)) <= 1
        stop.clear()
        assert camera.closed


def test_a_limit_of_time_ends_it(recognizer: Recognizer, pictures: list[Picture]) -> None:
    seconds = iter(range(100))
    clip = live.LiveClip(LoopedClip(pictures, 100), end=live.Fraction(5), clock=lambda: float(next(seconds)))
    assert [float(frame.time) for frame in clip.frames()][-1] == 4


@pytest.mark.parametrize("source", ["camera:", "camera:/no/such/device", 99, "camera:99"])
def test_a_camera_that_is_not_there_is_one_line(recognizer: Recognizer, source: int | str) -> None:
    with pytest.raises(VideoError, match="camera") as caught:
        recognizer.live(source)
    assert "\n" not in str(caught.value)


def test_opencv_reads_what_ffmpeg_cannot_open(monkeypatch: pytest.MonkeyPatch) -> None:
    class Capture:
        def __init__(self, number: int) -> None:
            assert number == 99

        def isOpened(self) -> bool:  # noqa: N802  # OpenCV's name
            return True

        def read(self) -> tuple[bool, Picture]:
            return True, np.full((2, 3, 3), (1, 2, 3), np.uint8)

        def release(self) -> None:
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    monkeypatch.setattr(live, "_may_exist", lambda number: True)
    camera = live.open_camera(99)
    picture = camera.read()
    assert picture is not None
    assert picture[0, 0].tolist() == [3, 2, 1]  # RGB


def test_the_command_reads_a_camera(
    model: Path,
    pictures: list[Picture],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opened: list[object] = []

    def fake(source: object) -> LoopedClip:
        opened.append(source)
        return LoopedClip(pictures, 8, lambda _: time.sleep(0.05))

    monkeypatch.setattr(live, "open_camera", fake)
    annotated = tmp_path / "live.mp4"
    assert run(["video", "camera:0", "-m", str(model), "--jsonl", "-", "-o", str(annotated)]) == 0
    frames = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert opened == ["camera:0"]
    assert {face["track"] for frame in frames for face in frame["faces"]} == {1}
    assert frames[-1]["index"] == 7
    assert cv2.VideoCapture(str(annotated)).read()[1].shape == (320, 320, 3)


def test_a_camera_has_no_start_and_no_stride(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--from", "1"], ["--every", "2"], ["--fps", "5"]):
        assert run(["video", "camera:0", "-m", str(model), *option]) == 1
        assert "is live" in capsys.readouterr().err
