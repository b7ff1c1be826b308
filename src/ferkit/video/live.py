"""Live cameras, read like clips: of the frames that come while one is worked on, the newest is next."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import VideoError
from ferkit.core.extras import require
from ferkit.core.runtime import first_line
from ferkit.video.clip import ClipFrame, ClipInfo

if TYPE_CHECKING:
    from av.container import InputContainer

PREFIX = "camera:"
"""What the name of a camera begins with."""

_TICK = Fraction(1, 1000)  # of a camera's times, in seconds
_LAST_READ = 1.0  # seconds that a camera gets to end its last read
_WAIT = 0.1  # seconds between looks at whether the work was stopped


class Camera(Protocol):
    """A source of live frames. It is read by one thread, which closes it as well."""

    @property
    def name(self) -> str:
        """A name for messages and results."""
        ...

    def read(self) -> NDArray[np.uint8] | None:
        """Wait for the next frame and return it.

        Returns:
            uint8 ``[H, W, 3]``, RGB, upright; None if there are no more.

        Raises:
            VideoError: If the camera fails.
        """
        ...

    def close(self) -> None:
        """Release the camera."""
        ...


CameraSource: TypeAlias = "int | str | Camera"
"""A camera's number, its name like ``camera:0`` or ``camera:/dev/video2``, or an object of one's own."""


def open_camera(source: CameraSource) -> Camera:
    """Open a camera, with FFmpeg if it knows the system's cameras by that name, otherwise with OpenCV.

    Raises:
        VideoError: If there is no such camera, or it cannot be opened.
    """
    if not isinstance(source, (int, str)):
        return source
    place = str(source).removeprefix(PREFIX)
    if not place:
        raise VideoError(f"a camera is a number or a device, such as {PREFIX}0. Received: {source!r}")
    name = PREFIX + place
    try:
        return _FFmpegCamera(name, place)
    except VideoError as error:
        if place.isdecimal():
            return _OpenCVCamera(name, int(place), error)
        raise


class _FFmpegCamera:
    """A camera that FFmpeg reads: v4l2 on Linux, AVFoundation on macOS, dshow on Windows."""

    def __init__(self, name: str, place: str) -> None:
        av = require("av", "video")
        self.name = name
        form, device = {
            "darwin": ("avfoundation", f"{place}:none"),
            "win32": ("dshow", f"video={place}"),
        }.get(sys.platform, ("v4l2", f"/dev/video{place}" if place.isdecimal() else place))
        self._errors: tuple[type[Exception], ...] = (av.FFmpegError, OSError, ValueError)
        try:
            self._container: InputContainer = av.open(device, format=form)
            self._frames: Iterator[Any] = self._container.decode(video=0)
        except self._errors as error:
            raise VideoError(f"{name} cannot be opened: {first_line(error)}") from error

    def read(self) -> NDArray[np.uint8] | None:
        try:
            frame = next(self._frames, None)
        except self._errors as error:
            raise VideoError(f"{self.name} fails: {first_line(error)}") from error
        return None if frame is None else np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)

    def close(self) -> None:
        self._container.close()


class _OpenCVCamera:
    """A camera that OpenCV reads."""

    def __init__(self, name: str, number: int, earlier: VideoError) -> None:
        import cv2

        self.name = name
        self._capture = cv2.VideoCapture(number) if _may_exist(number) else None
        if self._capture is None or not self._capture.isOpened():
            raise VideoError(f"{earlier}; OpenCV finds no camera {number} either") from earlier

    def read(self) -> NDArray[np.uint8] | None:
        assert self._capture is not None
        good, frame = self._capture.read()
        return np.ascontiguousarray(frame[:, :, ::-1]) if good else None

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()


def _may_exist(number: int) -> bool:
    """Whether OpenCV may be asked; on Linux it prints warnings about devices that do not exist."""
    from pathlib import Path

    return sys.platform != "linux" or Path(f"/dev/video{number}").exists()


class LiveClip:
    """A camera with the interface of a :class:`ferkit.video.clip.Clip`.

    A thread reads the camera and keeps the newest frame alone, so that results are never late by more than
    the work on one frame, and memory does not grow.

    It ends after ``end`` seconds (None: no limit), or at the next frame when ``stop`` is set.

    Raises:
        VideoError: If the camera cannot be opened, or gives no frame.
    """

    def __init__(
        self,
        source: CameraSource,
        *,
        end: Fraction | None = None,
        stop: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._camera = open_camera(source)
        self._clock = clock
        self._end = end
        self._stop = stop
        self._closed = False
        self._ended = False
        self._failure: VideoError | None = None
        self._count = self._yielded = 0
        try:
            first = self._camera.read()
        except VideoError:
            self._camera.close()
            raise
        if first is None:
            self._camera.close()
            raise VideoError(f"{self._camera.name} gives no frame; another program may use it")
        self._begin = clock()
        self._newest: ClipFrame | None = self._framed(first)
        self._changed = threading.Condition()
        height, width = first.shape[:2]
        self.info = ClipInfo(self._camera.name, "camera", "camera", width, height, None, None, _TICK, ())
        self.start = Fraction(0)

    @property
    def end(self) -> Fraction | None:
        """Seconds after which it ends; None for no limit."""
        return self._end

    @property
    def notes(self) -> tuple[str, ...]:
        """How many frames were skipped, and why the camera ended."""
        skipped = self._count - self._yielded - (self._newest is not None)
        told = [] if not skipped else [f"{skipped} of {self._count} frames came during the work on others"]
        return (*told, *([] if self._failure is None else [str(self._failure)]))

    @property
    def damaged(self) -> bool:
        """Whether the camera failed."""
        return self._failure is not None

    @property
    def stopped(self) -> bool:
        """Whether :meth:`close` was called or ``stop`` is set."""
        return self._closed or (self._stop is not None and self._stop.is_set())

    def close(self) -> None:
        """End the clip; may be called from another thread."""
        self._closed = True
        with self._changed:
            self._changed.notify_all()

    def frames(self) -> Iterator[ClipFrame]:
        """Yield the newest frame each time, never one twice; the last one included.

        The duration of a frame is the time since the frame before, as that to the next one is not known yet.
        """
        thread = threading.Thread(target=self._read, name="ferkit-camera", daemon=True)
        thread.start()
        last = Fraction(0)
        try:
            while True:
                with self._changed:
                    while self._newest is None and not self._ended and not self.stopped:
                        self._changed.wait(_WAIT)
                    frame, self._newest = self._newest, None
                    if frame is None or self.stopped:
                        return
                    self._yielded += 1
                yield ClipFrame(frame.index, frame.time, frame.time - last, frame.rgb)
                last = frame.time
        finally:
            self.close()
            thread.join(_LAST_READ)

    def _framed(self, picture: NDArray[np.uint8]) -> ClipFrame:
        passed = Fraction(round((self._clock() - self._begin) / _TICK)) * _TICK
        self._count += 1
        return ClipFrame(self._count - 1, passed, Fraction(0), picture)

    def _read(self) -> None:
        try:
            while not self.stopped:
                picture = self._camera.read()
                if picture is None:
                    break
                frame = self._framed(picture)
                if self._end is not None and frame.time >= self._end:
                    self._count -= 1
                    break
                with self._changed:
                    self._newest = frame
                    self._changed.notify_all()
        except VideoError as error:
            self._failure = error
        finally:
            self._camera.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()
