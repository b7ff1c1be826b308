"""Recognition in clips: faces of each frame, with tracks and smoothed expressions."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from ferkit.core.crops import CropGeometry, crop_corners
from ferkit.core.errors import DetectorError, ImageError, VideoError
from ferkit.core.images import DEFAULT_MAX_PIXELS, to_gray
from ferkit.detect import Detection, Detector
from ferkit.detect.whole import WholePicture
from ferkit.recognize.pipeline import CroppedFaces, in_batches
from ferkit.recognize.results import (
    Expression,
    Face,
    Table,
    expressions,
    face_cells,
    face_columns,
    to_pandas,
)
from ferkit.video.channel import read_ahead
from ferkit.video.clip import Clip, ClipFrame, ClipInfo, Seconds, seconds
from ferkit.video.live import PREFIX, CameraSource, LiveClip
from ferkit.video.smoothing import Smoother, Smoothing
from ferkit.video.tracking import FaceTracker, Tracked

if TYPE_CHECKING:
    from pandas import DataFrame

    from ferkit.recognize.recognizer import Recognizer

DETECT_EVERY = 0.2
"""Default seconds from one face detection to the next."""

AHEAD = 24 << 20
"""Bytes of pictures in each queue, and in a batch: memory does not grow with the length of the clip."""

_PENDING_FRAMES = 32
_MIN_WEIGHT = AHEAD // 24  # of a picture: a queue holds at most 24


class LiveOptions(TypedDict, total=False):
    """Options of :func:`recognize_live`."""

    end: Seconds | None
    detect_every: float
    max_gap: float
    smoothing: Smoothing | None
    stop: threading.Event | None
    keep_pictures: bool


class VideoOptions(LiveOptions, total=False):
    """Options of :func:`recognize_video`."""

    start: Seconds
    every: int
    fps: float | Fraction | None
    max_pixels: int


@dataclass(frozen=True, slots=True)
class TrackedFace:
    """A face in a frame.

    Attributes:
        track: Number of the track, from 1: the same in each frame, also after a short gap. None if the score
            is too low to open a track.
        face: The face, with its expression smoothed over time.
        raw: The expression in this frame alone.
        detected: False if optical flow moved the face here since the last detection.
    """

    track: int | None
    face: Face
    raw: Expression
    detected: bool

    @property
    def label(self) -> str:
        """The most probable label, or ``uncertain``."""
        return self.face.label

    @property
    def confidence(self) -> float:
        """The largest probability."""
        return self.face.confidence

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "track": self.track,
            "detected": self.detected,
            **self.face.to_dict(),
            "raw": self.raw.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class FrameResult:
    """The faces of a frame.

    Attributes:
        index: Number of the frame, counted from 0 at the start of the range; a stride leaves gaps.
        time: Time of the frame in seconds from the beginning of the clip.
        duration: Seconds until the next result, or until the end.
        width: In pixels, upright.
        height: In pixels, upright.
        taxonomy: Id of the label set.
        faces: The faces by descending score; empty if there is none.
        labels: The labels of the taxonomy in order; may be empty in results that were made by hand.
    """

    index: int
    time: float
    duration: float
    width: int
    height: int
    taxonomy: str
    faces: tuple[TrackedFace, ...]
    labels: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "index": self.index,
            "time": self.time,
            "duration": self.duration,
            "width": self.width,
            "height": self.height,
            "taxonomy": self.taxonomy,
            "faces": [face.to_dict() for face in self.faces],
        }

    def to_pandas(self) -> DataFrame:
        """Return a table with a row per face; see :func:`ferkit.to_pandas`."""
        return to_pandas([self])

    def table(self) -> Table:
        """Return the names of the columns, and a row per face, or one row if there is none."""
        labels = self.labels or (self.faces[0].face.probabilities if self.faces else ())
        return frame_columns(labels), frame_rows(self)


def frame_columns(labels: Iterable[str]) -> list[str]:
    """Return the names of a table's columns: those of :func:`frame_rows`."""
    face = face_columns(labels)
    return [
        *("frame", "time", "duration", "faces", "track"),
        *(*face[:5], "detected", *face[5:]),
        *("raw_label", "raw_confidence"),
    ]


def frame_rows(frame: FrameResult) -> list[list[Any]]:
    """Return the faces of a frame as rows of a table; a frame without a face is a row that ends early."""
    when = [frame.index, frame.time, frame.duration, len(frame.faces)]
    rows: list[list[Any]] = []
    for tracked in frame.faces:
        face = face_cells(tracked.face)
        raw = [tracked.raw.label, tracked.raw.confidence]
        rows.append([*when, tracked.track, *face[:5], int(tracked.detected), *face[5:], *raw])
    return rows or [when]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A frame whose faces are cut out and wait for the network."""

    frame: ClipFrame
    found: tuple[Tracked, ...]
    alive: tuple[int, ...]
    faces: CroppedFaces


class VideoReading(Iterator[FrameResult]):
    """The results of a clip, frame by frame; returned by :func:`recognize_video`.

    A thread reads ahead; it ends with the iteration, with :meth:`close`, or at the end of a ``with`` block.
    """

    def __init__(
        self,
        clip: Clip | LiveClip,
        results: Generator[tuple[FrameResult, ClipFrame], None, None],
        detector: _TolerantDetector,
        *,
        keeps_pictures: bool,
    ) -> None:
        self._clip = clip
        self._results = results
        self._detector = detector
        self._keeps_pictures = keeps_pictures

    @property
    def info(self) -> ClipInfo:
        """What the file declares."""
        return self._clip.info

    @property
    def notes(self) -> tuple[str, ...]:
        """Defects of the part that was read: damage, missing times, changes of size, failed detections."""
        return (*self._clip.notes, *self._detector.notes)

    @property
    def damaged(self) -> bool:
        """Whether a part of the clip could not be read so far."""
        return self._clip.damaged

    @property
    def start(self) -> Fraction:
        """Start of the range in seconds."""
        return self._clip.start

    def share_read(self, frame: FrameResult) -> float | None:
        """Return the share of the range up to the end of ``frame``, 0..1; None if its end is unknown."""
        start, end = self._clip.start, self._clip.end
        if end is None or end <= start:
            return None
        return min(1.0, max(0.0, (frame.time + frame.duration - float(start)) / float(end - start)))

    def __next__(self) -> FrameResult:
        """Return the result of the next frame."""
        return next(self._results)[0]

    def with_pictures(self) -> Iterator[tuple[FrameResult, ClipFrame]]:
        """Yield each result with its frame.

        Raises:
            VideoError: If the clip was not opened with ``keep_pictures``.
        """
        if not self._keeps_pictures:
            raise VideoError("the pictures of this clip were not kept; open it with keep_pictures=True")
        return self._results

    def close(self) -> None:
        """Stop reading."""
        self._results.close()

    def __enter__(self) -> Self:
        """Return the reading."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop reading."""
        self.close()


def recognize_video(
    recognizer: Recognizer,
    path: str | os.PathLike[str],
    *,
    start: Seconds = 0,
    end: Seconds | None = None,
    every: int = 1,
    fps: float | Fraction | None = None,
    detect_every: float = DETECT_EVERY,
    max_gap: float = 1.0,
    smoothing: Smoothing | None = Smoothing(),  # noqa: B008
    max_pixels: int = DEFAULT_MAX_PIXELS,
    stop: threading.Event | None = None,
    keep_pictures: bool = False,
) -> VideoReading:
    """Recognize the expressions of all faces of a clip, and track the faces.

    Faces of many frames go through the network together, and memory does not grow with the length of the
    clip. A clip that is cut off or damaged is read as far as possible; see :attr:`VideoReading.notes`.

    Args:
        recognizer: Detector and model.
        path: The clip: any file that FFmpeg reads; or a camera, like ``camera:0``, as in
            :func:`recognize_live`, which has no ``start``, ``every`` and ``fps``.
        start: Skip the frames before this time: seconds, or text like ``1:30``.
        end: Skip the frames from this time on.
        every: Read each n-th frame.
        fps: Read at most this many frames per second; times remain those of the clip.
        detect_every: Seconds of the clip from one face detection to the next at most; 0, or frames that are
            further apart: detect in each frame. Optical flow moves the faces in between.
        max_gap: Seconds that a face may be missing and keep its track.
        smoothing: How to smooth expressions over time; None: not at all.
        max_pixels: Clips with larger frames are refused; the limit of the recognizer is for photos.
        stop: When it is set, the clip ends at the next frame.
        keep_pictures: Whether :meth:`VideoReading.with_pictures` can return the frames.

    Returns:
        An iterator over the frames, the last one included.

    Raises:
        VideoError: If the clip cannot be read, has no video stream, or an argument is out of range; while
            iterating, if none of its frames can be decoded.
        DetectorError: While iterating, if the first detection fails. Later failures find no face and are
            counted in :attr:`VideoReading.notes`.
        ImageError: While iterating, if a frame cannot be a face crop because of its shape, or the model
            aligns faces by the eyes and the detector has no landmarks.
        MissingDependencyError: If the extra ``video`` is not installed.
    """
    if os.fspath(path).startswith(PREFIX):
        if seconds(start) or every != 1 or fps is not None:
            raise VideoError(f"{path} is live: it has no start, every and fps; its newest frames are taken")
        return recognize_live(
            recognizer,
            os.fspath(path),
            end=end,
            detect_every=detect_every,
            max_gap=max_gap,
            smoothing=smoothing,
            stop=stop,
            keep_pictures=keep_pictures,
        )
    clip = Clip(path, start=start, end=end, every=every, fps=fps, max_pixels=max_pixels, stop=stop)
    if isinstance(recognizer.detector, WholePicture):
        detect_every = 0
    coded = clip.info.rate or 30.0
    rate = coded / every if fps is None else min(coded, float(fps))
    detector = _TolerantDetector(recognizer.detector, recognizer.pipeline.geometry)
    tracker = FaceTracker(detector, every=detect_every, max_gap=max_gap, rate=rate)
    work = FrameWork(recognizer, tracker, None if smoothing is None else Smoother(smoothing), keep_pictures)
    return VideoReading(clip, work.results(clip), detector, keeps_pictures=keep_pictures)


def recognize_live(
    recognizer: Recognizer,
    source: CameraSource,
    *,
    end: Seconds | None = None,
    detect_every: float = DETECT_EVERY,
    max_gap: float = 1.0,
    smoothing: Smoothing | None = Smoothing(),  # noqa: B008
    stop: threading.Event | None = None,
    keep_pictures: bool = False,
) -> VideoReading:
    """Recognize the expressions of all faces that a camera sees, and track the faces.

    Each result comes before the next frame is taken; frames that come in the meantime are skipped but for the
    newest. Times are seconds since the first frame, and a result's duration is the time since the one before.

    Args:
        recognizer: Detector and model.
        source: A camera's number; its name, like ``camera:0`` or ``camera:/dev/video2``; or an object of the
            :class:`ferkit.video.live.Camera` interface.
        end: Seconds after which it ends; without a limit it ends with the camera, by ``stop`` or by
            :meth:`VideoReading.close`.
        detect_every: As in :func:`recognize_video`.
        max_gap: As in :func:`recognize_video`.
        smoothing: As in :func:`recognize_video`.
        stop: When it is set, it ends at the next frame.
        keep_pictures: Whether :meth:`VideoReading.with_pictures` can return the frames.

    Returns:
        An iterator over the results. A camera that fails ends it; see :attr:`VideoReading.notes`.

    Raises:
        VideoError: If the camera cannot be opened or gives no frame, or an argument is out of range.
        DetectorError: While iterating, if the first detection fails.
        ImageError: While iterating, as in :func:`recognize_video`.
        MissingDependencyError: If the extra ``video`` is not installed.
    """
    limit = None if end is None else seconds(end)
    if isinstance(recognizer.detector, WholePicture):
        detect_every = 0
    detector = _TolerantDetector(recognizer.detector, recognizer.pipeline.geometry)
    tracker = FaceTracker(detector, every=detect_every, max_gap=max_gap)
    work = FrameWork(recognizer, tracker, None if smoothing is None else Smoother(smoothing), keep_pictures)
    clip = LiveClip(source, end=limit, stop=stop)
    return VideoReading(clip, work.live(clip), detector, keeps_pictures=keep_pictures)


def weight(frame: ClipFrame) -> int:
    """Return the share of :data:`AHEAD` that a frame takes."""
    return max(frame.rgb.nbytes, _MIN_WEIGHT)


class _TolerantDetector:
    """A detector whose failures cost faces, not the rest of the clip.

    Boxes that cannot be cropped are dropped, and a detection that fails finds no face. If the first
    detection fails, that is an error.
    """

    def __init__(self, detector: Detector, geometry: CropGeometry) -> None:
        self._detector = detector
        self._geometry = geometry
        self._worked = False
        self._counts: Counter[str] = Counter()
        self._reasons: dict[str, str] = {}

    @property
    def name(self) -> str:
        return self._detector.name

    @property
    def notes(self) -> list[str]:
        """How many faces were dropped and how many detections failed, with the first reason of each."""
        return [f"{what}: {count} (first: {self._reasons[what]})" for what, count in self._counts.items()]

    def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
        try:
            found = self._detector.detect(image)
        except DetectorError as error:
            if not self._worked:
                raise
            self._count("failed detections, taken as no face", error)
            return ()
        self._worked = True
        if isinstance(self._detector, WholePicture):
            return found
        return tuple(face for face in found if self._can_be_cropped(face))

    def _can_be_cropped(self, face: Detection) -> bool:
        if self._geometry.align == "eyes" and face.landmarks is None:
            return True  # the detector does not fit the model; cropping raises the error
        try:
            marks = None if face.landmarks is None else [face.landmarks]
            crop_corners([face.box], marks, geometry=self._geometry)
        except ImageError as error:
            self._count("dropped faces that cannot be cropped", error)
            return False
        return True

    def _count(self, what: str, error: Exception) -> None:
        self._counts[what] += 1
        self._reasons.setdefault(what, str(error))


class FrameWork:
    """What happens to frames between the reader and the caller: found, tracked, classified, smoothed.

    Args:
        recognizer: Crops and classifies the faces.
        tracker: Finds and tracks them.
        smoother: Smooths their expressions; None for none.
        keep_pictures: Whether the frames keep their pictures.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        tracker: FaceTracker,
        smoother: Smoother | None,
        keep_pictures: bool = False,
    ) -> None:
        self._pipeline = recognizer.pipeline
        self._tracker = tracker
        self._smoother = smoother
        self._keep_pictures = keep_pictures

    def frame(self, frame: ClipFrame) -> FrameResult:
        """Return the result of the next frame."""
        ((result, _),) = self._read([self._cut_out(frame)])
        return result

    def live(self, clip: LiveClip) -> Generator[tuple[FrameResult, ClipFrame], None, None]:
        """Yield the result of each frame before the next one is taken."""
        for frame in clip.frames():
            yield from self._read([self._cut_out(frame)])

    def results(self, clip: Clip) -> Generator[tuple[FrameResult, ClipFrame], None, None]:
        """Yield the results of a clip; frames are read ahead and classified together."""
        frames = read_ahead(clip.frames(), limit=AHEAD, weigh=weight, cancel=clip.close)
        try:
            for batch in in_batches(self._prepared(clip, frames), self._is_full, "frames"):
                yield from self._read(batch)
        finally:
            frames.close()

    def _prepared(self, clip: Clip, frames: Iterator[ClipFrame]) -> Iterator[_Waiting]:
        for frame in frames:
            yield self._cut_out(frame)
            if clip.stopped:
                return

    def _is_full(self, waiting: list[_Waiting]) -> bool:
        pixels = sum(item.frame.rgb.nbytes for item in waiting)
        faces = sum(len(item.faces) for item in waiting)
        return len(waiting) >= _PENDING_FRAMES or pixels >= AHEAD or faces >= self._pipeline.batch_size

    def _cut_out(self, frame: ClipFrame) -> _Waiting:
        """Find the faces of a frame and crop them; the picture is dropped unless it is to be kept."""
        gray = to_gray(frame.rgb)
        found = self._tracker.update(frame.rgb, gray, float(frame.time))
        faces = self._pipeline.prepare(gray, [face.detection for face in found])
        if not self._keep_pictures:
            frame = replace(frame, rgb=np.empty((0, 0, 3), np.uint8))
        return _Waiting(frame, found, self._tracker.tracks, faces)

    def _read(self, waiting: list[_Waiting]) -> Iterator[tuple[FrameResult, ClipFrame]]:
        recognized = self._pipeline.recognize([item.faces for item in waiting])
        for item, raw in zip(waiting, recognized, strict=True):
            time = float(item.frame.time)
            faces = tuple(self._face(found, face, time) for found, face in zip(item.found, raw, strict=True))
            if self._smoother is not None:
                self._smoother.keep(item.alive)
            result = FrameResult(
                index=item.frame.index,
                time=time,
                duration=float(item.frame.duration),
                width=item.faces.width,
                height=item.faces.height,
                taxonomy=self._pipeline.taxonomy.id,
                faces=faces,
                labels=self._pipeline.taxonomy.labels,
            )
            yield result, item.frame

    def _face(self, found: Tracked, face: Face, time: float) -> TrackedFace:
        raw = face.expression
        if self._smoother is not None and found.track is not None:
            smooth = self._smoother.update(found.track, time, list(raw.probabilities.values()))
            (expression,) = expressions(
                smooth[None].astype(np.float32),
                self._pipeline.taxonomy,
                min_confidence=self._pipeline.min_confidence,
            )
            face = replace(face, expression=expression)
        return TrackedFace(found.track, face, raw, found.detected)
