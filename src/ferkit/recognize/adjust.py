"""Adjust a model's probabilities: to another prior, and to the quality of the face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ferkit.core.modelfile import HeadInfo
from ferkit.core.priors import shift_prior
from ferkit.recognize.quality import Quality


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What happens to the probabilities of an output."""

    head: HeadInfo  # the output
    # The prior to answer under, float64 ``[K]`` as a tuple; None for the model's own.
    prior: tuple[float, ...] | None = None

    def shift(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return probabilities float32 ``[N, K]`` under the prior."""
        if self.prior is None:
            return probabilities
        return shift_prior(probabilities, self.head.prior, self.prior).astype(np.float32)

    def soften(self, probabilities: NDArray[np.float32], qualities: Sequence[Quality]) -> NDArray[np.float32]:
        """Return probabilities float32 ``[N, K]`` with less confidence in faces of poor quality.

        The most probable label stays: ``softmax(log p / T)`` with the largest T of the measures of quality.
        """
        if not self.head.quality or not qualities:
            return probabilities
        temperatures = np.array(
            [max(curve.at(getattr(q, curve.measure)) for curve in self.head.quality) for q in qualities]
        )
        logits = np.log(np.maximum(probabilities.astype(np.float64), 1e-12)) / temperatures[:, None]
        softened = np.exp(logits - logits.max(axis=1, keepdims=True))
        softened /= softened.sum(axis=1, keepdims=True)
        # Faces of good quality keep the model's numbers to the last bit.
        return np.where(temperatures[:, None] > 1, softened, probabilities).astype(np.float32)
