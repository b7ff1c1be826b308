"""The detector for pictures that are face crops already: it takes each as it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ferkit.detect.base import Detection


class WholePicture:
    """Says that the picture is one face, without looking: only for what somebody else has cropped.

    The picture becomes the crop as a whole; no geometry is applied to it.
    """

    name = "none"

    def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
        """Return the whole picture; see :class:`ferkit.detect.Detector`."""
        height, width = image.shape[:2]
        return (Detection(box=(0.0, 0.0, float(width), float(height)), score=1.0),)
