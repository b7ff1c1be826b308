"""Temporal smoothing: causal means over the probabilities of a track."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferkit.core.errors import FerkitError

SmoothingKind = Literal["ema", "mean"]
SmoothingSpace = Literal["probability", "log"]

_FLOOR = 1e-6  # of a probability before its logarithm, so that one frame cannot rule out a label for good


@dataclass(frozen=True, slots=True)
class Smoothing:
    """How the probabilities of a track are smoothed over time. Only past frames count.

    Attributes:
        kind: ``ema``: an exponential moving average, whose weights fall by the factor e in ``seconds``;
            ``mean``: the plain mean of the last ``seconds``. Both depend on time, not on the number of
            frames, so a stride or a variable frame rate does not change them.
        seconds: Time constant, or length of the window.
        space: ``probability``: the arithmetic mean; ``log``: the normalised geometric mean, in which one
            small probability outweighs several moderate ones.

    Raises:
        FerkitError: If a value is invalid.
    """

    kind: SmoothingKind = "ema"
    seconds: float = 0.5
    space: SmoothingSpace = "probability"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.kind not in get_args(SmoothingKind) or self.space not in get_args(SmoothingSpace):
            raise FerkitError(
                "smoothing has the kind ema or mean, and the space probability or log. "
                f"Received: {self.kind!r}, {self.space!r}"
            )
        if not 0 < self.seconds < math.inf:
            raise FerkitError(f"smoothing has a time above 0 seconds. Received: {self.seconds}")


@dataclass(slots=True)
class _State:
    """Weighted sum, sum of weights and time of the last frame (ema), or the frames in the window (mean)."""

    total: NDArray[np.float64]
    weight: float = 0.0
    time: float = 0.0
    window: deque[tuple[float, NDArray[np.float64]]] = field(default_factory=deque)


class Smoother:
    """Smooths several tracks, each by itself."""

    def __init__(self, smoothing: Smoothing) -> None:
        self._smoothing = smoothing
        self._states: dict[int, _State] = {}

    def update(self, track: int, time: float, probabilities: ArrayLike) -> NDArray[np.float64]:
        """Add a frame of a track and return its smoothed probabilities.

        Args:
            track: Number of the track.
            time: In seconds; must not decrease within a track.
            probabilities: float ``[K]``, summing to one.

        Returns:
            float64 ``[K]``, summing to one.
        """
        value = np.asarray(probabilities, np.float64)
        log = self._smoothing.space == "log"
        if log:
            value = np.log(np.maximum(value, _FLOOR))
        state = self._states.setdefault(track, _State(np.zeros_like(value)))
        mean = (
            self._ema(state, time, value) if self._smoothing.kind == "ema" else self._mean(state, time, value)
        )
        if log:
            mean = np.exp(mean - mean.max())
        return np.asarray(mean / mean.sum(), np.float64)

    def keep(self, tracks: Iterable[int]) -> None:
        """Forget all tracks except these."""
        alive = set(tracks)
        self._states = {track: state for track, state in self._states.items() if track in alive}

    def _ema(self, state: _State, time: float, value: NDArray[np.float64]) -> NDArray[np.float64]:
        # The weights are summed too, so the result is a mean from the first frame on, without start-up bias.
        decay = math.exp(-max(0.0, time - state.time) / self._smoothing.seconds)
        state.total = state.total * decay + value
        state.weight = state.weight * decay + 1.0
        state.time = time
        return state.total / state.weight

    def _mean(self, state: _State, time: float, value: NDArray[np.float64]) -> NDArray[np.float64]:
        state.window.append((time, value))
        while state.window[0][0] <= time - self._smoothing.seconds:
            state.window.popleft()
        return np.asarray(np.mean([past for _, past in state.window], axis=0), np.float64)
