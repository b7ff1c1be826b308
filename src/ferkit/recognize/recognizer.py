"""The recognizer: photos in, faces with their expressions out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias, TypeVar, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from ferkit.core.classifier import FaceClassifier
from ferkit.core.crops import TTA_MODES, TtaMode, crop_corners, crop_faces, fit_crop
from ferkit.core.errors import DetectorError, FerkitError, ImageError, TaxonomyError
from ferkit.core.extras import require
from ferkit.core.images import DEFAULT_MAX_PIXELS, ImageSource, load_image, to_gray
from ferkit.detect import Detection, Detector, make_detector
from ferkit.detect.whole import WholePicture
from ferkit.recognize.quality import Quality, measure_quality
from ferkit.recognize.results import Explanation, Expression, Face, Photo, Unreadable, expressions

if TYPE_CHECKING:
    from ferkit.core.modelfile import ModelInfo
    from ferkit.core.taxonomy import Taxonomy
    from ferkit.video.recognition import VideoOptions, VideoReading

PENDING_PHOTOS = 256
"""Photos that may wait until their faces fill a batch, unless the caller says otherwise."""

_Box: TypeAlias = tuple[float, float, float, float]
_Marks: TypeAlias = tuple[tuple[float, float], ...]
_SomeSource = TypeVar("_SomeSource", bound=ImageSource)  # a list[str] is no list[ImageSource] to mypy


@dataclass(frozen=True, slots=True)
class _Cropped:
    """A photo whose faces are cut out, and wait for the network; the picture itself is let go."""

    source: str | None
    width: int
    height: int
    detections: tuple[Detection, ...]
    qualities: tuple[Quality, ...]
    crops: NDArray[np.uint8]


class Recognizer:
    """Finds the faces in photos and reads their expressions.

    Safe to use from several threads at once.

    Example:
        >>> import numpy as np
        >>> from ferkit import Recognizer
        >>> recognizer = Recognizer()
        >>> recognizer.predict(np.zeros((480, 640, 3), np.uint8)).faces
        ()

    Args:
        model: Name of an embedded model, a model file, its bytes, or None for the embedded default.
        detector: ``centerface``, ``yunet:FILE``, ``none`` (each photo is a face crop already), or an object
            of the :class:`ferkit.detect.Detector` interface.
        taxonomy: Id of the label set to answer in; by default the model's default.
        min_face: Height in pixels of the smallest face wanted. By default faces from 48 pixels on (where a
            side exceeds 3840, from an eightieth of it on) are searched for, and smaller ones kept where they
            turn up.
        min_confidence: Below this probability the label is ``uncertain``.
        tta: ``none`` (one look at each face), ``flip`` or ``ten-crop`` (the mean of two or ten looks,
            for two or ten times the work of the network).
        providers: ONNX Runtime execution providers, in order of preference, for the model and CenterFace; the
            CPU by default.
        threads: Threads of one call; by default the cores this process may use.
        batch_size: Faces that go through the network at once; it does not change the result.
        max_pixels: Photos with more are refused.

    Raises:
        FerkitError: If a number is out of its range or no number, there is no such tta, ``providers`` is
            no sequence of names, or ``min_face`` comes with a detector object.
        ModelFileError: If the model is missing or damaged.
        TaxonomyError: If the model does not answer in that taxonomy.
        DetectorError: If the detector is unknown, cannot be opened, or is no detector.
        MissingDependencyError: If a provider is not available here.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | None = None,
        *,
        detector: str | Detector = "centerface",
        taxonomy: str | None = None,
        min_face: float | None = None,
        min_confidence: float = 0.0,
        tta: TtaMode = "none",
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        batch_size: int = 64,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        if not isinstance(min_confidence, (int, float, np.number)) or not 0 <= min_confidence <= 1:
            raise FerkitError(f"a confidence lies between 0 and 1. Received: {min_confidence!r}")
        if tta not in TTA_MODES:
            raise FerkitError(f"a tta is one of {', '.join(TTA_MODES)}. Received: {tta!r}")
        for name, value in (("threads", threads), ("batch_size", batch_size), ("max_pixels", max_pixels)):
            if value is not None:
                _check_count(name, value)
        if not isinstance(detector, str) and not _is_detector(detector):
            raise DetectorError(
                "a detector is centerface, yunet:FILE, none, or an object with a name and a method detect. "
                f"Received: {detector!r}"
            )
        if not isinstance(detector, str) and min_face is not None:
            raise FerkitError("min_face is for detectors by name; set it in the detector object itself")
        require("cv2", "")  # an OpenCV that does not load is reported here, not with the first photo
        self._classifier = FaceClassifier(model, providers=providers, threads=threads)
        self._taxonomy = self._classifier.info.head(taxonomy).taxonomy
        self._detector = (
            make_detector(detector, min_face=min_face, providers=providers, threads=threads)
            if isinstance(detector, str)
            else detector
        )
        self._min_confidence = min_confidence
        self._tta = tta
        self._batch_size = batch_size
        self._max_pixels = max_pixels

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself."""
        return self._classifier.info

    @property
    def taxonomy(self) -> Taxonomy:
        """The label set of the answers."""
        return self._taxonomy

    @property
    def detector(self) -> Detector:
        """What finds the faces."""
        return self._detector

    @property
    def min_confidence(self) -> float:
        """Below this probability the label is ``uncertain``."""
        return self._min_confidence

    @property
    def batch_size(self) -> int:
        """Faces that go through the network at once."""
        return self._batch_size

    @overload
    def predict(self, photos: ImageSource) -> Photo: ...

    @overload
    def predict(self, photos: list[ImageSource] | tuple[ImageSource, ...]) -> list[Photo]: ...

    @overload
    def predict(self, photos: list[_SomeSource]) -> list[Photo]: ...

    def predict(
        self, photos: ImageSource | list[ImageSource] | list[_SomeSource] | tuple[ImageSource, ...]
    ) -> Photo | list[Photo]:
        """Read the expressions of all faces.

        Args:
            photos: A photo, or a list of photos: paths, bytes, arrays (RGB) or Pillow images.

        Returns:
            What was found in the photo, or in each of the list. No face is no error: ``faces`` is empty.

        Raises:
            ImageError: If a photo cannot be read, the detector fails at it, or a face cannot be cut out.
        """
        several = isinstance(photos, (list, tuple))
        results: list[Photo] = []
        for result in self.predict_each(photos if isinstance(photos, (list, tuple)) else [photos]):
            if isinstance(result, Unreadable):
                raise result.error
            results.append(result)
        return results if several else results[0]

    def predict_each(
        self, photos: Iterable[ImageSource], *, pending: int = PENDING_PHOTOS
    ) -> Iterator[Photo | Unreadable]:
        """Read photo after photo, as many as there are; an unreadable one does not stop the others.

        Faces travel in batches, and memory does not grow with the number of photos: a photo is let go as
        soon as its faces are cut out, so results come a little later than photos are taken.

        Args:
            photos: As in :meth:`predict`; may be an iterator.
            pending: Photos that may wait until their faces fill a batch, the one just taken included; 1 for a
                slow source, such as a camera: each result then comes before the next photo is taken.

        Yields:
            A result for each photo, in order. An error of ``photos`` itself, or of somebody's own detector,
            is raised after the results of the photos before it; a
            :class:`ferkit.core.errors.DetectorError` costs one photo only.

        Raises:
            FerkitError: If ``pending`` is no whole number from 1 on; at once, not with the first result.
        """
        _check_count("pending", pending)
        return (result for batch in self._batches(photos, pending) for result in self._read(batch))

    def predict_crops(self, crops: NDArray[np.uint8]) -> tuple[Expression, ...]:
        """Read the expressions of face crops, without looking for faces.

        Args:
            crops: uint8 ``[N, H, W]``, grayscale, 0..255; brought to the model's size if they have another.

        Raises:
            ImageError: If the crops do not have that shape and dtype.
        """
        if not isinstance(crops, np.ndarray) or crops.ndim != 3 or crops.dtype != np.uint8:
            received = f"{crops.dtype} {list(crops.shape)}" if isinstance(crops, np.ndarray) else type(crops)
            raise ImageError(f"crops are uint8 [N, H, W], grayscale. Received: {received}")
        size = self.info.input_size
        fitted = np.empty((len(crops), size, size), np.uint8)
        for k, crop in enumerate(crops):
            fitted[k] = fit_crop(crop, size)
        return self._classify(fitted)

    def video(self, path: str | os.PathLike[str], **options: Unpack[VideoOptions]) -> VideoReading:
        """Read the expressions of all faces of a clip, frame after frame.

        Example:
            >>> for frame in recognizer.video("clip.mp4", fps=10):  # doctest: +SKIP
            ...     print(frame.time, [(face.track, face.label) for face in frame.faces])

        Args:
            path: The clip: any file that FFmpeg reads.
            **options: See :func:`ferkit.video.recognition.recognize_video`.

        Raises:
            VideoError: If the clip cannot be read, or an option is out of range.
            MissingDependencyError: If the extra ``video`` is not installed.
        """
        from ferkit.video.recognition import recognize_video

        return recognize_video(self, path, **options)

    def crops(self, photo: ImageSource) -> NDArray[np.uint8]:
        """Return what the network sees of a photo's faces: uint8 ``[N, S, S]``, the surest face first.

        Raises:
            ImageError: If the photo cannot be read, or the detector fails at it.
        """
        cropped = self._cut_out(photo)
        if isinstance(cropped, Unreadable):
            raise cropped.error
        return cropped.crops

    def explain(self, source: ImageSource, photo: Photo) -> tuple[Explanation, ...]:
        """Return where in each face the network saw its leading label, as the mean of crop and mirror image.

        Args:
            source: The photo that ``photo`` was read from.
            photo: What this recognizer found in it.

        Returns:
            One map per face, in the order of ``photo.faces``.

        Raises:
            TaxonomyError: If ``photo`` is of another label set.
            ImageError: If the photo cannot be read, is not of the size that ``photo`` tells, or ``photo`` has
                found faces, where this recognizer takes each picture as one.
            ModelFileError: If the model has no class activation maps for this taxonomy.
        """
        self._check_own(photo)
        rgb = load_image(source, max_pixels=self._max_pixels)
        if rgb.shape[:2] != (photo.height, photo.width):
            raise ImageError(
                f"the result speaks of a photo of {photo.width} x {photo.height} pixels. "
                f"Received: {rgb.shape[1]} x {rgb.shape[0]}"
            )
        boxes, marks = [face.box for face in photo.faces], [face.landmarks for face in photo.faces]
        crops = self._crop(to_gray(rgb), boxes, marks)
        # Strided convolutions pad to one side, so their maps lie a little to the upper left of what they saw:
        # of the embedded model by 5 % of the crop. Together with the mirror image's they do not, sideways.
        maps, mirrored = (
            self._classifier.cams(shown, self._taxonomy.id, batch_size=self._batch_size)
            for shown in (crops, np.ascontiguousarray(crops[:, :, ::-1]))
        )
        maps = (maps + mirrored[:, :, :, ::-1]) * np.float32(0.5)
        seen = self.info.view_size / self.info.input_size
        explained = []
        for square, face, of_labels in zip(
            self._corners(photo, boxes, marks), photo.faces, maps, strict=True
        ):
            best = int(np.argmax(list(face.probabilities.values())))
            heat = np.maximum(of_labels[best], 0)
            middle = square.mean(axis=0)
            corners = (square - middle) * seen + middle
            explained.append(
                Explanation(
                    self._taxonomy.labels[best],
                    tuple((float(x), float(y)) for x, y in corners),
                    heat / (heat.max() or np.float32(1)),
                )
            )
        return tuple(explained)

    def _check_own(self, photo: Photo) -> None:
        """Refuse a photo that another recognizer has read, as far as it shows."""
        labels = self._taxonomy.labels
        others = [face.probabilities for face in photo.faces if tuple(face.probabilities) != labels]
        if photo.taxonomy != self._taxonomy.id or others:
            shown = f" ({', '.join(others[0])})" if others else ""
            raise TaxonomyError(
                f"this recognizer answers in {self._taxonomy.id} ({', '.join(labels)}). "
                f"Received: a result in {photo.taxonomy}{shown}; explain it by the recognizer that it is of"
            )
        whole = (0, 0, photo.width, photo.height)
        if isinstance(self._detector, WholePicture) and [face.box for face in photo.faces] != [whole]:
            raise ImageError(
                "this recognizer has the detector none and takes each picture as one face crop. Received: a "
                f"result of {len(photo.faces)} found in it; explain it by the recognizer that it is of"
            )

    def _corners(
        self, photo: Photo, boxes: Sequence[_Box], marks: Sequence[_Marks | None]
    ) -> NDArray[np.float64]:
        if not isinstance(self._detector, WholePicture):
            return crop_corners(*_as_arrays(boxes, marks), geometry=self.info.crop)
        half, x, y = max(photo.width, photo.height) / 2, photo.width / 2, photo.height / 2
        return np.array(
            [[(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]]
        )

    def _batches(self, photos: Iterable[ImageSource], pending: int) -> Iterator[list[_Cropped | Unreadable]]:
        """Yield photos whose faces are cut out, as many as go through the network together."""
        waiting: list[_Cropped | Unreadable] = []
        faces = taken = 0
        try:
            for photo in photos:
                cropped = self._cut_out(photo)
                taken += 1
                waiting.append(cropped)
                if isinstance(cropped, _Cropped):
                    faces += len(cropped.detections)
                if faces >= self._batch_size or len(waiting) >= pending:
                    yield waiting
                    waiting.clear()  # whoever reads the batch still holds it: it would stay beside the next
                    faces = 0
        except Exception as error:
            # An error of the caller's source or detector, or a lack of memory, does not take finished photos
            # along.
            error.add_note(f"ferkit had taken {taken} photos before this")
            yield waiting
            raise
        yield waiting

    def _cut_out(self, photo: ImageSource) -> _Cropped | Unreadable:
        source = os.fspath(photo) if isinstance(photo, (str, os.PathLike)) else None
        try:
            rgb = load_image(photo, max_pixels=self._max_pixels)
        except ImageError as error:
            return Unreadable(source, error)
        height, width = rgb.shape[:2]
        try:
            detections = self._detector.detect(rgb)
            boxes, marks = [d.box for d in detections], [d.landmarks for d in detections]
            crops = self._crop(to_gray(rgb), boxes, marks)
        except (DetectorError, ImageError) as error:
            # Such as a picture too long to be a face crop, or an empty box of somebody's own detector.
            failure = ImageError(f"{source or 'the picture'}: {error}")
            failure.__cause__ = error
            return Unreadable(source, failure)
        qualities = tuple(
            measure_quality(d.box, d.landmarks, crop, width, height)
            for d, crop in zip(detections, crops, strict=True)
        )
        return _Cropped(source, width, height, detections, qualities, crops)

    def _crop(
        self, gray: NDArray[np.uint8], boxes: Sequence[_Box], marks: Sequence[_Marks | None]
    ) -> NDArray[np.uint8]:
        size = self.info.input_size
        if isinstance(self._detector, WholePicture):
            return fit_crop(gray, size)[None]
        return crop_faces(gray, *_as_arrays(boxes, marks), geometry=self.info.crop, size=size)

    def _read(self, waiting: list[_Cropped | Unreadable]) -> Iterator[Photo | Unreadable]:
        size = self.info.input_size
        stacks = [w.crops for w in waiting if isinstance(w, _Cropped)]
        read = iter(self._classify(np.concatenate([np.empty((0, size, size), np.uint8), *stacks])))
        for item in waiting:
            if isinstance(item, Unreadable):
                yield item
                continue
            faces = tuple(
                Face(d.box, d.score, d.landmarks, expression, quality)
                for d, quality, expression in zip(
                    item.detections, item.qualities, islice(read, len(item.detections)), strict=True
                )
            )
            yield Photo(item.source, item.width, item.height, self._taxonomy.id, faces, self._taxonomy.labels)

    def _classify(self, crops: NDArray[np.uint8]) -> tuple[Expression, ...]:
        name = self._taxonomy.id
        probabilities = self._classifier.predict(
            crops, tta=self._tta, batch_size=self._batch_size, taxonomies=[name]
        )[name]
        return expressions(probabilities, self._taxonomy, min_confidence=self._min_confidence)


def _check_count(name: str, value: object) -> None:
    """Refuse what is no whole number from 1 on.

    Raises:
        FerkitError: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise FerkitError(f"{name} must be a whole number. Received: {value!r}")
    if value < 1:
        raise FerkitError(f"{name} must be at least 1. Received: {value}")


def _is_detector(thing: object) -> bool:
    """Tell whether a thing looks like a :class:`ferkit.detect.Detector`; a class that makes them does not."""
    named = isinstance(getattr(thing, "name", None), str)
    return named and callable(getattr(thing, "detect", None)) and not isinstance(thing, type)


def _as_arrays(
    boxes: Sequence[_Box], marks: Sequence[_Marks | None]
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Return boxes ``[N, 4]`` and landmarks ``[N, 5, 2]``, None where a face has none."""
    known = None if None in marks else np.array(marks, np.float64).reshape(-1, 5, 2)
    return np.array(boxes, np.float64).reshape(-1, 4), known
