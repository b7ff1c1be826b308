"""The detector for pictures that are face crops already."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ferkit.detect.base import Detection


class WholePicture:
    """Takes each picture as one face, without detection. The whole picture becomes the crop."""

    name = "none"

    def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
        """Return the whole picture; see :class:`ferkit.detect.Detector`."""
        height, width = image.shape[:2]
        return (Detection(box=(0.0, 0.0, float(width), float(height)), score=1.0),)
