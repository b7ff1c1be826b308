"""Measures of a face crop: its detail, and its light."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sharpness(crop: NDArray[np.uint8]) -> float:
    """Return the detail of a face crop uint8 ``[S, S]``, independent of brightness and contrast.

    It is the standard deviation of the Laplacian (four neighbours) over that of the pixels; 0 for a crop of
    one gray value.

    Example:
        >>> import numpy as np
        >>> checkers = (np.indices((48, 48)).sum(axis=0) % 2 * 255).astype(np.uint8)
        >>> sharpness(checkers)
        8.0
        >>> sharpness(np.full((48, 48), 90, np.uint8))
        0.0
    """
    grays = crop.astype(np.float64)
    spread = float(grays.std())
    if spread == 0 or min(crop.shape) < 3:
        return 0.0
    middle = grays[1:-1, 1:-1]
    around = grays[:-2, 1:-1] + grays[2:, 1:-1] + grays[1:-1, :-2] + grays[1:-1, 2:]
    return float((around - 4 * middle).std()) / spread


def brightness(crop: NDArray[np.uint8]) -> float:
    """Return the mean gray of the middle of a face crop uint8 ``[S, S]``, two thirds of each side, 0..255.

    Example:
        >>> import numpy as np
        >>> brightness(np.pad(np.full((32, 32), 90, np.uint8), 8))
        90.0
    """
    rim = round(len(crop) / 6)
    return float(crop[rim : len(crop) - rim, rim : len(crop) - rim].mean())
