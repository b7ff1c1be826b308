"""What the detectors that run a network share: pictures searched at several scales, in tiles."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ferkit.core import onnxbytes
from ferkit.core.errors import DetectorError
from ferkit.core.runtime import open_session
from ferkit.detect.base import Detection, as_detections, suppress

LONGEST = 640
"""Longest side of a network's input in pixels, which bounds its memory."""

ZOOM = 4.0
"""Largest factor between two scales, and largest scale."""

_MULTIPLE = 32  # of the input's sides
_OVERLAP = 128  # of tiles; larger faces, 24 * ZOOM, are found at the scale before
_LEAST_ZOOM = 1.1  # a smaller factor is not worth another scale


@dataclass(frozen=True, slots=True)
class Faces:
    """Faces in pixels of a picture: boxes ``[N, 4]``, scores ``[N]``, landmarks ``[N, 5, 2]``."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    landmarks: NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of faces."""
        return len(self.boxes)

    @property
    def heights(self) -> NDArray[np.float32]:
        """Heights of the boxes in pixels, ``[N]``."""
        return self.boxes[:, 3] - self.boxes[:, 1]

    def select(self, rows: NDArray[Any] | slice) -> Faces:
        """Return some of the faces, by index, mask or slice."""
        return Faces(self.boxes[rows], self.scores[rows], self.landmarks[rows])

    def distinct(self) -> Faces:
        """Return the faces by falling score, each once."""
        return self.select(suppress(self.boxes, self.scores))


Run: TypeAlias = Callable[[NDArray[np.uint8]], Faces]
"""Runs a network on a tile uint8 ``[h, w, 3]``, RGB, and decodes its outputs."""


def join(parts: Sequence[Faces]) -> Faces:
    """Return the faces of all parts."""
    return Faces(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.landmarks for part in parts]),
    )


def zoom_steps(first: float, last: float) -> list[float]:
    """Return the scales after ``first`` up to ``last``, each at most :data:`ZOOM` times the one before."""
    if last < _LEAST_ZOOM * first:
        return []
    steps = math.ceil(math.log(last / first, ZOOM))
    return [first * (last / first) ** (k / steps) for k in range(1, steps + 1)]


def search(image: NDArray[np.uint8], scale: float, run: Run) -> Faces:
    """Search a whole picture uint8 ``[H, W, 3]`` at one scale, in tiles if it is large.

    Returns:
        The faces in pixels of the picture; those of overlapping tiles may repeat.
    """
    import cv2

    full_height, full_width = image.shape[:2]
    height, width = (max(1, round(side * scale)) for side in (full_height, full_width))
    if (height, width) != (full_height, full_width):
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(image, (width, height), interpolation=how), np.uint8)
    parts = []
    for top, bottom in _spans(height):
        for left, right in _spans(width):
            found = run(image[top:bottom, left:right]).distinct()
            found.boxes[:, 0::2] += left
            found.boxes[:, 1::2] += top
            found.landmarks[:] += (left, top)
            # A face that is cut by an inner edge of a tile is whole in the tile beside it.
            begin = [left + 1 if left else -math.inf, top + 1 if top else -math.inf]
            end = [right - 1 if right < width else math.inf, bottom - 1 if bottom < height else math.inf]
            whole = (found.boxes[:, :2] > begin) & (found.boxes[:, 2:] < end)
            parts.append(found.select(np.flatnonzero(whole.all(axis=1))))
    back = np.array([full_width / width, full_height / height], np.float32)
    found = join(parts)
    return Faces(found.boxes * np.tile(back, 2), found.scores, found.landmarks * back)


def as_input(tile: NDArray[np.uint8], *, bgr: bool = False) -> NDArray[np.float32]:
    """Return a tile uint8 ``[h, w, 3]``, RGB, as the networks take it.

    Args:
        tile: The tile.
        bgr: Whether the network takes blue first.

    Returns:
        float32 ``[1, 3, H, W]``, 0..255; zeros fill it up to multiples of 32.
    """
    height, width = tile.shape[:2]
    shape = (1, 3, *(-(-side // _MULTIPLE) * _MULTIPLE for side in (height, width)))
    padded = np.zeros(shape, np.float32)
    for channel in range(3):
        padded[0, 2 - channel if bgr else channel, :height, :width] = tile[:, :, channel]
    return padded


def _spans(length: int) -> Iterator[tuple[int, int]]:
    """Cover ``0..length`` with overlapping spans of equal size, none longer than :data:`LONGEST`."""
    count = 1 if length <= LONGEST else math.ceil((length - _OVERLAP) / (LONGEST - _OVERLAP))
    size = math.ceil((length + (count - 1) * _OVERLAP) / count)
    for k in range(count):
        start = min(k * (size - _OVERLAP), length - size) if count > 1 else 0
        yield start, min(start + size, length)


def detections(found: Faces, width: int, height: int, min_face: float | None) -> tuple[Detection, ...]:
    """Return the faces in a picture of that size, each once, that are not smaller than ``min_face``."""
    boxes = found.boxes
    inside = (boxes[:, :2] < (width, height)).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(found.landmarks).all(axis=(1, 2))
    kept = found.select(inside & finite & (found.heights >= (min_face or 0))).distinct()
    return as_detections(kept.boxes, kept.scores, kept.landmarks)


def package_file(package: str, name: str, command: str) -> Path:
    """Return a network's file in a package, which is not imported.

    Args:
        package: The package.
        name: The file in it.
        command: What installs the package.

    Raises:
        DetectorError: If the package or its file is missing.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / name
        if path.is_file():
            return path
    raise DetectorError(
        f"this face detector needs the file {name} of the package {package}, which is missing. "
        f"Install it with `{command}`"
    )


def open_network(path: Path, providers: Sequence[str] | None, threads: int | None) -> Any:
    """Open a detector's network with free input and output sizes.

    Args:
        path: Its ONNX file.
        providers: ONNX Runtime execution providers in order of preference; the CPU by default.
        threads: Threads per call; by default the cores that this process may use.

    Raises:
        DetectorError: If the file cannot be read or opened.
        MissingDependencyError: If a provider is not available here.
    """
    try:
        content = onnxbytes.free_sizes(path.read_bytes())
    except OSError as error:
        raise DetectorError(f"cannot read {path}: {error.strerror or error}") from error
    except onnxbytes.MalformedError as error:
        raise DetectorError(f"{path} is no ONNX file, or is damaged: {error}") from error
    return open_session(content, str(path), fail=DetectorError, providers=providers, threads=threads)
