"""Face tracking: detection in some frames, optical flow in between, and ByteTrack for the identities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import VideoError
from ferkit.detect import Detection, Detector
from ferkit.video.association import ByteTrack
from ferkit.video.cuts import CutDetector, are_replaced

_MAX_SIDE = 640  # pixels of the picture in which motion is measured
_GRID = 5  # points across a face, and as many down
_INSIDE = (0.15, 0.85)  # the part of the box with points: its corners show background
_WINDOW = (15, 15)
_LEVELS = 3
_MAX_ERROR = 1.0  # pixels between a point and where it returns to
_MIN_SHARE = 0.4  # of the points that must return
_MAX_GROWTH = 1.25  # of a face from one frame to the next
_COMPARABLE = 0.25  # seconds between two frames in which a face looks alike
_TOLERANCE = 1.05  # so that rounded times do not shorten an interval by a frame
_TICK = 1e-3  # seconds by which the tracker's clock moves on at least


@dataclass(frozen=True, slots=True)
class Tracked:
    """A face in a frame."""

    track: int | None  # number of the track, from 1; None if the score is too low to open a track
    detection: Detection  # the box and landmarks; the score is that of the last detection
    detected: bool  # False if optical flow moved the face here from an earlier frame


class FaceTracker:
    """Tracks faces through the frames of one clip: detection, optical flow, and ByteTrack.

    ByteTrack (Zhang et al. 2022, https://arxiv.org/abs/2110.06864) associates the faces of each frame,
    detected or moved, with tracks.

    Args:
        detector: The face detector.
        every: Seconds from one detection to the next at most, with 5 % tolerance; 0: detect in each frame. In
            between, optical flow moves the faces. Detection runs earlier if optical flow loses a face, and at
            a cut, and in each frame if they are further apart.
        max_gap: Seconds that a face may be missing and keep its track. A face that was in the previous frame
            always keeps its track, however far apart the frames are.
        rate: Approximate frames per second.

    Raises:
        VideoError: If an argument is out of range.
    """

    def __init__(
        self, detector: Detector, *, every: float = 0.2, max_gap: float = 1.0, rate: float = 30.0
    ) -> None:
        if not 0 <= every < math.inf:
            raise VideoError(f"detect_every is a number of seconds from 0 on. Received: {every}")
        if not 0 <= max_gap < 3600:
            raise VideoError(f"max_gap is 0 seconds or more, below an hour. Received: {max_gap}")
        self._detector = detector
        self._every = every
        rate = min(max(rate, 1.0), 1000.0)
        self._max_step = max(max_gap, 1 / rate)
        # Half a tick more, so that rounding does not decide about a gap of exactly this length.
        self._byte = ByteTrack(max_gap=self._max_step + _TICK / 2, rate=rate)
        self._time = 0.0
        self._detected = -math.inf
        self._size: tuple[int, int] | None = None
        self._small: NDArray[np.uint8] | None = None
        self._last: tuple[Tracked, ...] = ()
        self._cuts = CutDetector()

    @property
    def tracks(self) -> tuple[int, ...]:
        """Numbers of the tracks that have not ended."""
        return self._byte.tracks

    def update(self, rgb: NDArray[np.uint8], gray: NDArray[np.uint8], time: float) -> tuple[Tracked, ...]:
        """Return the faces of the next frame.

        ``rgb`` is uint8 ``[H, W, 3]``, ``gray`` the same frame uint8 ``[H, W]``, ``time`` in seconds.

        Raises:
            DetectorError: If the detector fails.
        """
        # All frames are scaled to one size, so that tracks survive a change of size.
        small, scale = self._shrunk(gray)
        cut = self._cuts.is_cut(rgb, small)
        earlier = [face.detection for face in self._last]
        step = time - self._time
        moved = None
        if self._small is not None and not cut and time + step - self._detected < _TOLERANCE * self._every:
            moved = move(self._small, small, earlier)
        detected = moved is None or None in moved
        if detected:
            self._detected = time
            faces = tuple(face.scaled(*(1 / scale)) for face in self._detector.detect(rgb))
            if self._small is not None and step <= _COMPARABLE:
                cut = cut or are_replaced(self._small, earlier, small, faces)
        else:
            faces = tuple(face for face in moved or () if face is not None)
        if cut:
            self._byte.reset()
        numbers = self._assign(faces, time)
        self._small = small
        self._last = tuple(
            Tracked(number, face, detected) for number, face in zip(numbers, faces, strict=True)
        )
        return tuple(Tracked(t.track, t.detection.scaled(*scale), t.detected) for t in self._last)

    def _shrunk(self, gray: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Return the frame at the tracker's size, and the factors of x and y back to the frame."""
        import cv2

        height, width = gray.shape
        if self._size is None:
            # By a whole number: OpenCV averages whole pixels ten times as fast as fractions of them.
            shrink = -(-max(height, width) // _MAX_SIDE)
            self._size = max(1, width // shrink), max(1, height // shrink)
        scale = np.array([width / self._size[0], height / self._size[1]])
        if (width, height) == self._size:
            return gray, scale
        return np.asarray(cv2.resize(gray, self._size, interpolation=cv2.INTER_AREA), np.uint8), scale

    def _assign(self, faces: Sequence[Detection], time: float) -> list[int | None]:
        """Return the track number of each face."""
        step = min(max(time - self._time, _TICK), self._max_step)
        self._time = time
        boxes = np.array([face.box for face in faces], np.float64).reshape(-1, 4)
        return self._byte.update(boxes, np.array([face.score for face in faces], np.float64), step)


def move(
    before: NDArray[np.uint8], now: NDArray[np.uint8], faces: Sequence[Detection]
) -> list[Detection | None]:
    """Move faces from one frame to the next by optical flow.

    Points inside each face are tracked forward and back again (Kalal et al. 2010, Forward-Backward Error,
    https://doi.org/10.1109/ICPR.2010.675); the medians over the points that return move and scale the face.

    ``before`` is the frame with the faces, ``now`` the next one, uint8 ``[H, W]``.

    Returns:
        Each face in ``now``, or None where optical flow loses it.
    """
    import cv2

    if not faces:
        return []
    height, width = now.shape
    grids = np.stack([_grid(face.box, width, height) for face in faces])
    points = grids.reshape(-1, 1, 2).astype(np.float32)

    def flow(one: NDArray[np.uint8], other: NDArray[np.uint8], at: Any) -> tuple[Any, Any]:
        ends, found, _ = cv2.calcOpticalFlowPyrLK(
            one, other, at, np.empty_like(at), winSize=_WINDOW, maxLevel=_LEVELS
        )
        return ends, found

    there, found = flow(before, now, points)
    back, found_back = flow(now, before, there)
    good = (found & found_back).reshape(-1).astype(bool)
    good &= np.abs(back - points).reshape(-1, 2).max(axis=1) < _MAX_ERROR
    target = there.reshape(-1, 2)
    good &= (target >= 0).all(axis=1) & (target < (width, height)).all(axis=1)
    ends = target.reshape(grids.shape).astype(np.float64)
    each = zip(faces, grids, ends, good.reshape(len(faces), -1), strict=True)
    return [_moved(face, grid, to, kept, (width, height)) for face, grid, to, kept in each]


def _grid(box: tuple[float, float, float, float], width: int, height: int) -> NDArray[np.float64]:
    """Return points float64 ``[N, 2]`` inside the visible part of a face."""
    left, right = np.clip((box[0], box[2]), 0, width - 1)
    top, bottom = np.clip((box[1], box[3]), 0, height - 1)
    steps = np.linspace(*_INSIDE, _GRID)
    x, y = np.meshgrid(left + steps * (right - left), top + steps * (bottom - top))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _moved(
    face: Detection,
    before: NDArray[np.float64],
    now: NDArray[np.float64],
    good: NDArray[np.bool_],
    size: tuple[int, int],
) -> Detection | None:
    """Return a face moved with its points; None if too few are good or it leaves a picture of ``size``."""
    if good.mean() < _MIN_SHARE:
        return None
    before, now = before[good], now[good]
    shift = np.median(now - before, axis=0)
    centre = np.median(before, axis=0)
    rows, others = np.triu_indices(len(before), 1)
    apart = np.hypot(*(before[rows] - before[others]).T)
    wide = apart > 0
    growth = np.hypot(*(now[rows] - now[others]).T)[wide] / apart[wide]
    scale = float(np.median(growth)) if len(growth) else 1.0
    extent = max(face.box[2] - face.box[0], face.box[3] - face.box[1])
    if not 1 / _MAX_GROWTH < scale < _MAX_GROWTH or np.abs(shift).max() > extent:
        return None

    def place(x: float, y: float) -> tuple[float, float]:
        at = centre + (np.array([x, y]) - centre) * scale + shift
        return float(at[0]), float(at[1])

    box = (*place(face.box[0], face.box[1]), *place(face.box[2], face.box[3]))
    if box[2] <= 0 or box[3] <= 0 or box[0] >= size[0] or box[1] >= size[1]:
        return None
    marks = face.landmarks
    return Detection(
        box,
        face.score,
        None if marks is None else tuple(place(x, y) for x, y in marks),
    )
