"""Probabilities of a face over time: one reading per frame in, a calmer one out."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferkit.core.errors import FerkitError

SmoothingKind = Literal["ema", "mean"]
SmoothingSpace = Literal["probability", "log"]

_FLOOR = 1e-6  # of a probability before its logarithm: a single reading must not forbid a label for good


@dataclass(frozen=True, slots=True)
class Smoothing:
    """How readings of one face are joined over time. Only the past counts, so it works on live video too.

    Attributes:
        kind: ``ema``: a mean whose weights fall by the factor e every ``seconds``; ``mean``: the plain mean
            of the last ``seconds``. Both go by time, not by frames, so that a stride or a variable frame
            rate does not change what they do.
        seconds: Time constant, or length of the window.
        space: ``probability``: the arithmetic mean. ``log``: the geometric mean, normalised, in which one
            clear No outweighs several undecided readings.

    Raises:
        FerkitError: If a value is none of these.
    """

    kind: SmoothingKind = "ema"
    seconds: float = 0.5
    space: SmoothingSpace = "probability"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.kind not in get_args(SmoothingKind) or self.space not in get_args(SmoothingSpace):
            raise FerkitError(
                "smoothing is ema or mean, in the space probability or log. "
                f"Received: {self.kind!r}, {self.space!r}"
            )
        if not 0 < self.seconds < math.inf:
            raise FerkitError(f"smoothing takes a time above 0 seconds. Received: {self.seconds}")


@dataclass(slots=True)
class _Ema:
    total: NDArray[np.float64]
    weight: float
    time: float


class Smoother:
    """Keeps the state of every track.

    Args:
        smoothing: How to smooth.
    """

    def __init__(self, smoothing: Smoothing) -> None:
        self._smoothing = smoothing
        self._emas: dict[int, _Ema] = {}
        self._windows: dict[int, deque[tuple[float, NDArray[np.float64]]]] = {}

    def update(self, track: int, time: float, probabilities: ArrayLike) -> NDArray[np.float64]:
        """Take a reading of a track and return the smoothed probabilities.

        Args:
            track: Whose face it is.
            time: In seconds; does not fall from one reading of a track to the next.
            probabilities: float ``[K]``, summing to one.

        Returns:
            float64 ``[K]``, summing to one.
        """
        reading = np.asarray(probabilities, np.float64)
        log = self._smoothing.space == "log"
        value = np.log(np.maximum(reading, _FLOOR)) if log else reading
        join = self._ema if self._smoothing.kind == "ema" else self._mean
        mean = join(track, time, value)
        if log:
            mean = np.exp(mean - mean.max())
        return np.asarray(mean / mean.sum(), np.float64)

    def keep(self, tracks: Iterable[int]) -> None:
        """Forget every track but these."""
        alive = set(tracks)
        for states in (self._emas, self._windows):
            for track in [track for track in states if track not in alive]:
                del states[track]

    def _ema(self, track: int, time: float, value: NDArray[np.float64]) -> NDArray[np.float64]:
        state = self._emas.get(track)
        if state is None:
            self._emas[track] = _Ema(value.copy(), 1.0, time)
            return value
        # The weights are summed too: from the first reading on the result is a mean, without a start-up bias.
        fall = math.exp(-max(0.0, time - state.time) / self._smoothing.seconds)
        state.total = state.total * fall + value
        state.weight = state.weight * fall + 1.0
        state.time = time
        return state.total / state.weight

    def _mean(self, track: int, time: float, value: NDArray[np.float64]) -> NDArray[np.float64]:
        window = self._windows.setdefault(track, deque())
        window.append((time, value))
        while window[0][0] <= time - self._smoothing.seconds:
            window.popleft()
        mean: NDArray[np.float64] = np.mean([past for _, past in window], axis=0)
        return mean
