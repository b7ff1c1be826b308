"""YuNet (Wu et al. 2023, https://doi.org/10.1007/s11633-023-1423-y), run by OpenCV from a user's file."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DetectorError
from ferkit.detect.base import Detection, as_detections, check_settings, suppress

_LONGEST = 640
_SMALLEST = 12.0  # pixels of a face in the input
_MOST = 2560  # longest side of the input, which bounds the memory


class YuNet:
    """OpenCV's ``FaceDetectorYN``.

    Args:
        model: The network's ONNX file, for instance ``face_detection_yunet_2023mar.onnx`` of OpenCV's zoo.
        min_face: Height in pixels of the smallest face; smaller faces are left out. Pictures are shrunk such
            that this face has 12 pixels, but to no less than 640 pixels and no more than 2560: no face below
            a 213th of the longest side is found. By default pictures are shrunk to 640 pixels, which finds
            faces from a 53rd of the longest side on.
        min_score: Smallest score of a face, between 0 and 1.

    Raises:
        DetectorError: If an argument is out of range, the file is missing, or OpenCV cannot use it.
    """

    name = "yunet"

    def __init__(self, model: str | Path, *, min_face: float | None = None, min_score: float = 0.6) -> None:
        import cv2

        check_settings(min_face, min_score)
        self._min_face = min_face
        self._lock = threading.Lock()  # the network stores the size of its input
        if not Path(model).is_file():
            raise DetectorError(f"no file {model}; yunet:FILE needs the network's ONNX file")
        try:
            self._network = cv2.FaceDetectorYN.create(str(model), "", (320, 320), min_score, 0.3, 5000)
            self._network.detect(np.zeros((320, 320, 3), np.uint8))
        except cv2.error as error:
            raise DetectorError(f"OpenCV cannot use {model} as a YuNet: {_reason(error)}") from error

    def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
        """Find the faces of one picture; see :class:`ferkit.detect.Detector`."""
        import cv2

        height, width = image.shape[:2]
        longest = max(height, width)
        wanted = _LONGEST if self._min_face is None else longest * _SMALLEST / self._min_face
        scale = min(1.0, max(_LONGEST, min(wanted, _MOST)) / longest)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        shown = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
        try:
            with self._lock:
                self._network.setInputSize(size)
                _, rows = self._network.detect(cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))
        except cv2.error as error:
            raise DetectorError(f"YuNet fails: {_reason(error)}") from error
        if rows is None:
            return ()
        return _faces(
            np.asarray(rows, np.float32), np.array([width / size[0], height / size[1]]), self._min_face or 0
        )


def _faces(rows: NDArray[np.float32], back: NDArray[np.float64], min_face: float) -> tuple[Detection, ...]:
    """Return the faces of OpenCV's rows (left, top, width, height, five landmarks, score), each once."""
    rows = rows[np.isfinite(rows).all(axis=1)]
    boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1) * np.tile(back, 2)
    marks = rows[:, 4:14].reshape(-1, 5, 2) * back
    kept = [k for k in suppress(boxes, rows[:, 14]) if boxes[k, 3] - boxes[k, 1] >= min_face]
    return as_detections(boxes[kept], np.clip(rows[kept, 14], 0, 1), marks[kept])


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
