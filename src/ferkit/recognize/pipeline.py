"""The face pipeline: detect, crop and classify. Photos and clips share it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ferkit.core.classifier import FaceClassifier
from ferkit.core.crops import CropGeometry, TtaMode, crop_corners, crop_faces, fit_crop
from ferkit.core.taxonomy import Taxonomy
from ferkit.detect import Detection, Detector
from ferkit.detect.whole import WholePicture
from ferkit.recognize.adjust import Adjustment
from ferkit.recognize.quality import Quality, measure_quality
from ferkit.recognize.results import Expression, Face, expressions

Located: TypeAlias = Sequence[Detection] | Sequence[Face]
"""Faces with boxes and landmarks in pixels of a picture."""

_Item = TypeVar("_Item")
_Done = TypeVar("_Done")


@dataclass(frozen=True, slots=True)
class CroppedFaces:
    """The faces of one picture, cropped and ready for the network.

    Attributes:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        detections: The N detected faces.
        qualities: Their quality.
        crops: uint8 ``[N, S, S]``.
    """

    width: int
    height: int
    detections: tuple[Detection, ...]
    qualities: tuple[Quality, ...]
    crops: NDArray[np.uint8]

    def __len__(self) -> int:
        """Return the number of faces."""
        return len(self.detections)


@dataclass(frozen=True, slots=True)
class FacePipeline:
    """Detects, crops and classifies faces. Safe to use from several threads at once.

    Attributes:
        detector: Finds the faces.
        classifier: Gives probabilities for crops.
        taxonomy: The label set, one of those the classifier has.
        adjustment: Of its probabilities, for another prior and for poor faces.
        min_confidence: Below this probability the label is ``uncertain``.
        tta: Mode of test-time augmentation.
        batch_size: Crops per call of the network.
    """

    detector: Detector
    classifier: FaceClassifier
    taxonomy: Taxonomy
    adjustment: Adjustment
    min_confidence: float
    tta: TtaMode
    batch_size: int

    @property
    def takes_whole_pictures(self) -> bool:
        """Whether each picture is one face crop, without detection."""
        return isinstance(self.detector, WholePicture)

    @property
    def geometry(self) -> CropGeometry:
        """How the detector's faces are cut."""
        return self.classifier.info.crop_for(self.detector.name)

    def crop(self, gray: NDArray[np.uint8], faces: Located) -> NDArray[np.uint8]:
        """Return the crops of faces in a picture uint8 ``[H, W]``, as the network takes them.

        Returns:
            uint8 ``[N, S, S]``.

        Raises:
            ImageError: If a face cannot be cropped.
        """
        size = self.classifier.info.input_size
        if self.takes_whole_pictures:
            return fit_crop(gray, size)[None]
        return crop_faces(gray, *_as_arrays(faces), geometry=self.geometry, size=size)

    def corners(self, faces: Located, width: int, height: int) -> NDArray[np.float64]:
        """Return the corners float64 ``[N, 4, 2]`` of the squares that :meth:`crop` cuts, clockwise."""
        if not self.takes_whole_pictures:
            return crop_corners(*_as_arrays(faces), geometry=self.geometry)
        half, x, y = max(width, height) / 2, width / 2, height / 2
        return np.array(
            [[(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]]
        )

    def prepare(
        self, gray: NDArray[np.uint8], detections: Sequence[Detection], size: tuple[int, int] | None = None
    ) -> CroppedFaces:
        """Crop detected faces and measure their quality.

        Args:
            gray: uint8 ``[H, W]``, the picture.
            detections: The faces in it.
            size: Width and height of the picture of which the detections are, if ``gray`` is a reduced copy.

        Raises:
            ImageError: If a face cannot be cropped.
        """
        height, width = gray.shape
        located = detections
        if size is not None and size != (width, height):
            located = [d.scaled(width / size[0], height / size[1]) for d in detections]
            width, height = size
        crops = self.crop(gray, located)
        qualities = tuple(
            measure_quality(d.box, d.landmarks, crop, width, height)
            for d, crop in zip(detections, crops, strict=True)
        )
        return CroppedFaces(width, height, tuple(detections), qualities, crops)

    def classify(self, crops: NDArray[np.uint8], qualities: Sequence[Quality] = ()) -> tuple[Expression, ...]:
        """Return the expressions of crops uint8 ``[N, S, S]``.

        Args:
            crops: The crops.
            qualities: Their quality, which lowers the confidence in poor faces; empty if it was not measured.
        """
        name = self.taxonomy.id
        probabilities = self.classifier.predict(
            crops, tta=self.tta, batch_size=self.batch_size, taxonomies=[name]
        )[name]
        adjusted = self.adjustment.soften(self.adjustment.shift(probabilities), qualities)
        return expressions(adjusted, self.taxonomy, min_confidence=self.min_confidence)

    def recognize(self, pictures: Sequence[CroppedFaces]) -> Iterator[tuple[Face, ...]]:
        """Yield the faces of each picture; all of them are classified together."""
        size = self.classifier.info.input_size
        crops = [np.empty((0, size, size), np.uint8), *(picture.crops for picture in pictures)]
        qualities = [quality for picture in pictures for quality in picture.qualities]
        found = iter(self.classify(np.concatenate(crops), qualities))
        for picture in pictures:
            yield tuple(
                Face(d.box, d.score, d.landmarks, next(found), quality)
                for d, quality in zip(picture.detections, picture.qualities, strict=True)
            )


def in_batches(
    items: Iterable[_Item], is_full: Callable[[list[_Item]], bool], what: str
) -> Iterator[list[_Item]]:
    """Group items into batches.

    Args:
        items: The items.
        is_full: Whether a batch takes no more items.
        what: What the items are, in the plural, for the note of an error.

    Yields:
        Each batch; it is emptied when the next one is requested. If ``items`` raises an error, the items
        before it are yielded first.
    """
    batch: list[_Item] = []
    count = 0
    try:
        for item in items:
            batch.append(item)
            count += 1
            if is_full(batch):
                yield batch
                batch.clear()  # the consumer still holds the list: its items would stay beside the next batch
    except Exception as error:
        error.add_note(f"ferkit had taken {count} {what} before this")
        yield batch
        raise
    yield batch


def in_threads(
    function: Callable[[_Item], _Done], items: Iterable[_Item], workers: int, ahead: int
) -> Iterator[_Done]:
    """Apply a function to items in several threads.

    Args:
        function: The function; it should spend its time in code that releases Python's lock.
        items: The items; they are taken in the caller's thread.
        workers: Threads.
        ahead: Items that are taken before the result of the first of them is yielded: the limit of memory.

    Yields:
        The results in the order of the items. An error of ``items`` is raised after the results of the items
        before it, an error of the function in place of its result.
    """
    taken = iter(items)
    waiting: deque[Future[_Done]] = deque()
    end: Exception | None = None
    threads = ThreadPoolExecutor(workers, thread_name_prefix="ferkit-worker")
    try:
        while True:
            while end is None and len(waiting) < ahead:
                try:
                    waiting.append(threads.submit(function, next(taken)))
                except Exception as error:  # noqa: BLE001  # raised below
                    end = error
            if not waiting:
                break
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
    if end is not None and not isinstance(end, StopIteration):
        raise end


def _as_arrays(faces: Located) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Return boxes ``[N, 4]`` and landmarks ``[N, 5, 2]``, None if a face has none."""
    marks = [face.landmarks for face in faces]
    landmarks = None if None in marks else np.array(marks, np.float64).reshape(-1, 5, 2)
    return np.array([face.box for face in faces], np.float64).reshape(-1, 4), landmarks
