"""Faces from frame to frame: detection now and then, motion in between, and who is who."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import VideoError
from ferkit.core.extras import require
from ferkit.detect import Detection, Detector

_LONGEST = 640  # pixels of the picture in which motion is measured, at most
_GRID = 5  # points across a face, and as many down
_INSIDE = (0.15, 0.85)  # part of the box they stand in: its corners show background
_WINDOW = (15, 15)
_LEVELS = 3
_ASTRAY = 1.0  # pixels between a point and where it comes back to
_FEWEST = 0.4  # of the points that must come back
_GROWTH = 1.25  # of a face, from one frame to the next, at most
_SURE = 0.5  # score from which a face opens a track; see Zhang et al. 2022, https://arxiv.org/abs/2110.06864
_THUMB = (32, 18)
_CUT = 0.3  # correlation of two thumbnails below which they show different scenes
_FLAT = 2.0  # standard deviation below which a thumbnail shows nothing to compare
_TICK = 1e-3  # seconds; the tracker's clock always moves on


@dataclass(frozen=True, slots=True)
class Tracked:
    """A face in a frame.

    Attributes:
        track: Number of the person, from 1; None for a face too unsure to be followed.
        detection: Where the face is; the score is that of its last detection.
        detected: False if it was not searched for in this frame but moved here along with the picture.
    """

    track: int | None
    detection: Detection
    detected: bool


class FaceTracker:
    """Follows faces through the frames of one clip: detection, optical flow, and ByteTrack.

    ByteTrack (Zhang et al. 2022, https://arxiv.org/abs/2110.06864) gets the faces of every frame, found or
    moved, and says who is who.

    Args:
        detector: Finds the faces.
        every: Search for faces in each n-th frame, and move them by optical flow in the frames between. It is
            searched earlier where the motion of a face cannot be told, and where the scene changes. Who comes
            into the picture is seen at the next search.
        max_gap: Seconds that a face may be out of sight and still be the same person. One that was seen in
            the frame before always is, however short the gap and however few frames there are.
        rate: About how many frames a second there will be.

    Raises:
        VideoError: If an argument is out of range.
        MissingDependencyError: If the extra ``video`` is not installed.
    """

    def __init__(
        self, detector: Detector, *, every: int = 1, max_gap: float = 1.0, rate: float = 30.0
    ) -> None:
        if every < 1:
            raise VideoError(f"faces are searched for in each n-th frame, n from 1 on. Received: {every}")
        if not 0 <= max_gap < 3600:
            raise VideoError(f"a gap lasts 0 seconds or more, below an hour. Received: {max_gap}")
        self._detector = detector
        self._every = every
        rate = min(max(rate, 1.0), 1000.0)
        # A frame that comes later than the gap allows must not end a track that was seen in the one before.
        self._longest = max(max_gap, 1 / rate)
        self._boxes: Any = require("supervision", "video").Detections
        self._byte: Any = require("trackers", "video").ByteTrackTracker(
            # Counted in frames of 1/30 s, whatever the clip's rate, also in parts of them. Longer than any
            # step of the clock: rounding then decides nothing.
            lost_track_buffer=30 * (self._longest + _TICK / 2),
            frame_rate=rate,
            track_activation_threshold=_SURE,
            high_conf_det_threshold=_SURE,
            minimum_consecutive_frames=1,
        )
        self._numbers: list[tuple[Any, int]] = []
        self._count = 0
        self._clock = self._time = 0.0
        self._since = 0
        self._size: tuple[int, int] | None = None
        self._small: NDArray[np.uint8] | None = None
        self._thumb: NDArray[np.float64] | None = None
        self._last: tuple[Tracked, ...] = ()

    @property
    def tracks(self) -> tuple[int, ...]:
        """The tracks that a face may still be given to."""
        return tuple(number for _, number in self._numbers)

    def update(self, rgb: NDArray[np.uint8], gray: NDArray[np.uint8], time: float) -> tuple[Tracked, ...]:
        """Take the next frame and return its faces.

        Args:
            rgb: uint8 ``[H, W, 3]``.
            gray: uint8 ``[H, W]``, the same frame.
            time: In seconds.

        Raises:
            DetectorError: If the detector fails.
        """
        # One scale for all frames: a clip whose size changes midway keeps its tracks.
        small, scale = self._shrunk(gray)
        cut = self._is_cut(small)
        if cut:
            self._byte.reset()
            self._numbers = []
        moved = None
        if self._small is not None and not cut and self._since + 1 < self._every:
            moved = move(self._small, small, [face.detection for face in self._last])
        if moved is None or any(face is None for face in moved):
            self._since = 0
            faces = tuple(_scaled(face, 1 / scale) for face in self._detector.detect(rgb))
            detected = True
        else:
            self._since += 1
            faces = tuple(face for face in moved if face is not None)
            detected = False
        numbers = self._assign(faces, time)
        self._small = small
        self._last = tuple(
            Tracked(number, face, detected) for number, face in zip(numbers, faces, strict=True)
        )
        return tuple(Tracked(t.track, _scaled(t.detection, scale), t.detected) for t in self._last)

    def _shrunk(self, gray: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Return the frame at the tracker's size, and what brings x and y back to the frame."""
        import cv2

        height, width = gray.shape
        if self._size is None:
            # By a whole number: OpenCV averages over whole pixels ten times as fast as over parts of them.
            shrink = -(-max(height, width) // _LONGEST)
            self._size = max(1, width // shrink), max(1, height // shrink)
        scale = np.array([width / self._size[0], height / self._size[1]])
        if (width, height) == self._size:
            return gray, scale
        return np.asarray(cv2.resize(gray, self._size, interpolation=cv2.INTER_AREA), np.uint8), scale

    def _is_cut(self, small: NDArray[np.uint8]) -> bool:
        """Say whether another scene begins; a flash, or fading to black and back, is no other scene."""
        import cv2

        thumb = np.asarray(cv2.resize(small, _THUMB, interpolation=cv2.INTER_AREA), np.float64)
        thumb -= thumb.mean()
        spread = float(thumb.std())
        if spread < _FLAT:
            return False
        thumb /= spread
        before, self._thumb = self._thumb, thumb
        return before is not None and float((before * thumb).mean()) < _CUT

    def _assign(self, faces: Sequence[Detection], time: float) -> list[int | None]:
        """Return the track of each face."""
        self._clock += min(max(time - self._time, _TICK), self._longest)
        self._time = time
        boxes = np.array([face.box for face in faces], np.float64).reshape(-1, 4)
        given = self._boxes(
            xyxy=boxes,
            confidence=np.array([face.score for face in faces], np.float64),
            class_id=np.zeros(len(faces), int),
            data={"row": np.arange(len(faces))},
        )
        result = self._byte.update(given, timestamp=self._clock)
        alive = self._byte.tracks
        self._numbers = [pair for pair in self._numbers if any(pair[0] is track for track in alive)]
        numbers: list[int | None] = [None] * len(faces)
        for row, identity in zip(result.data.get("row", ()), result.tracker_id, strict=True):
            # ByteTrack names a track when it is seen for the second time; ours have a number from the first.
            track = _named(alive, identity) if identity != -1 else _opened(alive, boxes[row])
            if track is not None:
                numbers[row] = self._number(track)
        return numbers

    def _number(self, track: Any) -> int:
        for known, number in self._numbers:
            if known is track:
                return number
        self._count += 1
        self._numbers.append((track, self._count))
        return self._count


def _named(tracks: Sequence[Any], identity: int) -> Any:
    return next((track for track in tracks if track.tracker_id == identity), None)


def _opened(tracks: Sequence[Any], box: NDArray[np.float64]) -> Any:
    """Return the track that begins with this box, if one does."""
    return next(
        (t for t in tracks if t.tracker_id == -1 and np.allclose(t.get_state_bbox(), box, atol=1e-3)), None
    )


def _scaled(face: Detection, scale: NDArray[np.float64]) -> Detection:
    x, y = float(scale[0]), float(scale[1])
    left, top, right, bottom = face.box
    marks = face.landmarks
    return Detection(
        (left * x, top * y, right * x, bottom * y),
        face.score,
        None if marks is None else tuple((mark[0] * x, mark[1] * y) for mark in marks),
    )


def move(
    before: NDArray[np.uint8], now: NDArray[np.uint8], faces: Sequence[Detection]
) -> list[Detection | None]:
    """Move faces along with the picture, by optical flow.

    Points inside each face are followed from one frame to the next and back again (Kalal et al. 2010,
    Forward-Backward Error, https://doi.org/10.1109/ICPR.2010.675); the median of those that come back moves
    and scales the face.

    Args:
        before: uint8 ``[H, W]``, the frame in which the faces are known.
        now: uint8 ``[H, W]``, the frame after it.
        faces: The faces in ``before``.

    Returns:
        Each face in ``now``, or None where its motion cannot be told.
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
    good &= np.abs(back - points).reshape(-1, 2).max(axis=1) < _ASTRAY
    target = there.reshape(-1, 2)
    good &= (target >= 0).all(axis=1) & (target < (width, height)).all(axis=1)
    ends = target.reshape(grids.shape).astype(np.float64)
    each = zip(faces, grids, ends, good.reshape(len(faces), -1), strict=True)
    return [_follow(face, grid, to, kept, (width, height)) for face, grid, to, kept in each]


def _grid(box: tuple[float, float, float, float], width: int, height: int) -> NDArray[np.float64]:
    """Return points float64 ``[N, 2]`` inside a face, in the part of it that lies in the picture."""
    left, right = np.clip((box[0], box[2]), 0, width - 1)
    top, bottom = np.clip((box[1], box[3]), 0, height - 1)
    steps = np.linspace(*_INSIDE, _GRID)
    x, y = np.meshgrid(left + steps * (right - left), top + steps * (bottom - top))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _follow(
    face: Detection,
    before: NDArray[np.float64],
    now: NDArray[np.float64],
    good: NDArray[np.bool_],
    size: tuple[int, int],
) -> Detection | None:
    """Move one face by the points that stand for it; None if it leaves a picture of ``size`` (x, y)."""
    if good.mean() < _FEWEST:
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
    if not 1 / _GROWTH < scale < _GROWTH or np.abs(shift).max() > extent:
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
