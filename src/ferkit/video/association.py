"""ByteTrack: boxes of successive frames become tracks.

Zhang et al. 2022, https://arxiv.org/abs/2110.06864: a Kalman filter predicts each track's box; boxes of high
score are assigned to tracks by overlap, then boxes of low score to the tracks that remain. Frames may be any
time apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_HIGH = 0.5  # score from which a box is assigned first, and opens a track
_LEAST_OVERLAP = 0.1  # intersection over union of a box with a track's prediction
_MEASUREMENT = 0.1  # variance of a box's coordinate, in units of the first prediction's
_PROCESS = 0.01  # variance that position and velocity gain per frame


class _Track:
    """A box that moves at constant velocity, for which a Kalman filter predicts the next frame's.

    The four coordinates are independent and equally uncertain, so they share one covariance of position and
    velocity.
    """

    def __init__(self, number: int, box: NDArray[np.float64]) -> None:
        self.number = number
        self.missed = 0.0
        """Seconds since the last box."""
        self.box = box
        """Left, top, right, bottom: that of the last frame, or predicted."""
        self._velocity = np.zeros(4)  # per frame
        self._covariance = np.eye(2)

    def predict(self, frames: float) -> None:
        """Move on by a time, in frames."""
        step = np.array([[1.0, frames], [0.0, 1.0]])
        self.box = self.box + frames * self._velocity
        # White noise of the acceleration; the position has some of its own.
        noise = _PROCESS * np.array([[max(frames**4 / 4, 1.0), frames**3 / 2], [frames**3 / 2, frames**2]])
        self._covariance = step @ self._covariance @ step.T + noise

    def update(self, box: NDArray[np.float64]) -> None:
        """Take the box of this frame."""
        gain = self._covariance[:, 0] / (self._covariance[0, 0] + _MEASUREMENT)
        error = box - self.box
        self.box = self.box + gain[0] * error
        self._velocity = self._velocity + gain[1] * error
        self._covariance = self._covariance - np.outer(gain, self._covariance[0])
        self.missed = 0.0


class ByteTrack:
    """Assigns the boxes of successive frames to tracks.

    ``max_gap`` is in seconds; ``rate`` is the frames per second that the noise of the motion is meant for.
    """

    def __init__(self, *, max_gap: float, rate: float) -> None:
        self._max_gap = max_gap
        self._rate = rate
        self._tracks: list[_Track] = []
        self._count = 0

    @property
    def tracks(self) -> tuple[int, ...]:
        """Numbers of the tracks that have not ended."""
        return tuple(track.number for track in self._tracks)

    def reset(self) -> None:
        """End all tracks; numbers go on."""
        self._tracks = []

    def update(
        self, boxes: NDArray[np.float64], scores: NDArray[np.float64], step: float
    ) -> list[int | None]:
        """Assign the boxes of the next frame.

        Args:
            boxes: ``[N, 4]``: left, top, right, bottom.
            scores: ``[N]``, 0..1.
            step: Seconds since the frame before.

        Returns:
            The track's number for each box, from 1 on; None for one whose score is too low to open a track.
        """
        for track in self._tracks:
            track.predict(step * self._rate)
            track.missed += step
        self._tracks = [track for track in self._tracks if track.missed <= self._max_gap]
        numbers: list[int | None] = [None] * len(boxes)
        waiting = list(self._tracks)
        high = scores >= _HIGH
        for rows in (np.flatnonzero(high), np.flatnonzero(~high)):
            pairs = _assign(waiting, boxes[rows])
            for track, column in pairs:
                track.update(boxes[rows[column]])
                numbers[rows[column]] = track.number
            taken = {track.number for track, _ in pairs}
            waiting = [track for track in waiting if track.number not in taken]
        for row in np.flatnonzero(high):
            if numbers[row] is None:
                self._count += 1
                self._tracks.append(_Track(self._count, boxes[row]))
                numbers[row] = self._count
        return numbers


def _assign(tracks: Sequence[_Track], boxes: NDArray[np.float64]) -> list[tuple[_Track, int]]:
    """Return pairs of a track and a row of ``boxes`` that overlap, with the largest sum of overlaps."""
    if not tracks or not len(boxes):
        return []
    overlaps = intersection_over_union(np.stack([track.box for track in tracks]), boxes)
    pairs = enumerate(best_assignment(-overlaps))
    return [(tracks[row], col) for row, col in pairs if col >= 0 and overlaps[row, col] >= _LEAST_OVERLAP]


def intersection_over_union(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union ``[N, M]`` of boxes ``[N, 4]`` with boxes ``[M, 4]``."""
    begin, end = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(end - begin, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0), np.float64)


def best_assignment(costs: NDArray[np.float64]) -> list[int]:
    """Return the column for each row such that the sum of costs is least; -1 for a row that gets none.

    The Hungarian method with potentials (Kuhn 1955; Jonker and Volgenant 1987), in O(N²·M).

    Args:
        costs: ``[N, M]``, finite.
    """
    if costs.shape[0] > costs.shape[1]:
        rows = best_assignment(costs.T)
        return [rows.index(row) if row in rows else -1 for row in range(costs.shape[0])]
    count, width = costs.shape
    of_row, of_column = np.zeros(count), np.zeros(width)  # potentials
    owner = np.full(width + 1, -1)  # row of each column; the last column is the start of the search
    for row in range(count):
        owner[width], column = row, width
        least, before = np.full(width, np.inf), np.full(width, width)
        done = np.zeros(width + 1, bool)
        while owner[column] >= 0:
            done[column] = True
            open_ = ~done[:width]
            reduced = costs[owner[column]] - of_row[owner[column]] - of_column
            better = open_ & (reduced < least)
            least[better], before[better] = reduced[better], column
            nearest = int(np.argmin(np.where(open_, least, np.inf)))
            delta = least[nearest]
            of_row[owner[done]] += delta
            of_column[done[:width]] -= delta
            least[open_] -= delta
            column = nearest
        while column != width:
            owner[column], column = owner[before[column]], before[column]
    found = [-1] * count
    for column, row in enumerate(owner[:width]):
        if row >= 0:
            found[row] = column
    return found
