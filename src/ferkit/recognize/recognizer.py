"""The recognizer: photos in, faces with their expressions out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from ferkit.core.classifier import FaceClassifier
from ferkit.core.crops import TTA_MODES, TtaMode, fit_crop
from ferkit.core.errors import DetectorError, FerkitError, ImageError, ModelFileError, TaxonomyError
from ferkit.core.extras import require
from ferkit.core.images import DEFAULT_MAX_PIXELS, ImageSource, is_data_uri, load_image, load_reduced, to_gray
from ferkit.core.priors import Prior, estimate_prior, read_prior
from ferkit.detect import DEFAULT, Detection, Detector, make_detector
from ferkit.detect.base import ReducingDetector
from ferkit.recognize.adjust import Adjustment
from ferkit.recognize.pipeline import CroppedFaces, FacePipeline, in_batches, in_threads
from ferkit.recognize.results import Explanation, Expression, Photo, Unreadable

if TYPE_CHECKING:
    from ferkit.core.modelfile import HeadInfo, ModelInfo
    from ferkit.core.taxonomy import Taxonomy
    from ferkit.video.live import CameraSource
    from ferkit.video.recognition import LiveOptions, VideoOptions, VideoReading

PENDING_PHOTOS = 256
"""Photos that may wait until their faces fill a batch, by default."""

PENDING_BYTES = 64 << 20
"""Bytes of kept pictures that may wait until their faces fill a batch."""

NamedSource: TypeAlias = "tuple[str | None, ImageSource | ImageError]"
"""A photo, or the reason why there is none, with the name that its result gets as ``source``."""

_LEAST_HEIGHT = 64.0  # pixels of a face in a reduced photo; smaller ones are cropped from the photo itself

_SomeSource = TypeVar("_SomeSource", bound=ImageSource)  # to mypy, a list[str] is no list[ImageSource]


@dataclass(frozen=True, slots=True)
class _Pending:
    """A photo that waits for the network; the picture itself is dropped unless it is to be kept."""

    source: str | None
    faces: CroppedFaces
    picture: NDArray[np.uint8] | None
    seconds: float


class Recognizer:
    """Finds the faces in photos and classifies their expressions.

    Safe to use from several threads at once. It is pickled by its settings, and opens its networks again.

    Example:
        >>> import numpy as np
        >>> from ferkit import Recognizer
        >>> recognizer = Recognizer()
        >>> recognizer.predict(np.zeros((480, 640, 3), np.uint8)).faces
        ()

    Args:
        model: Name of a model, a model file, its bytes, or None for the default model.
        detector: ``yunet``, ``yunet:FILE``, ``centerface`` (extra ``centerface``), ``none`` (each photo is a
            face crop already), or an object of the :class:`ferkit.detect.Detector` interface.
        taxonomy: Id of the label set; by default the model's default.
        min_face: Height in pixels of the smallest face to search for; smaller faces are left out. By default
            faces from 48 pixels on (in photos longer than 3840 pixels, from an eightieth of the longest side
            on) are searched for, and smaller ones are kept if they are found; see
            :class:`ferkit.detect.yunet.YuNet`.
        min_confidence: Below this probability the label is ``uncertain``.
        max_error: Faces are ``uncertain`` too where fewer would leave more than this share of the others
            wrong, by the coverage curve in the model file.
        prior: How frequent the labels are: ``training`` (as where the model was trained), ``uniform``, a TOML
            file, or a number by label, such as that of :meth:`estimate_prior`; by default the model's own.
        tta: Test-time augmentation: ``none``, ``flip`` or ``ten-crop`` (the mean over two or ten views, at
            two or ten times the cost of the network).
        providers: ONNX Runtime execution providers, in order of preference, for the model and the detector;
            the CPU by default.
        threads: Threads per call; by default the cores that this process may use.
        batch_size: Faces per call of the network; it does not change the result.
        max_pixels: Photos with more pixels are refused.

    Raises:
        FerkitError: If a number is out of its range or not a number, the tta is unknown, ``providers`` is
            no sequence of names, or ``min_face`` is given with a detector object.
        ModelFileError: If the model is missing or damaged, or does not reach ``max_error``.
        TaxonomyError: If the model does not have that label set, or the prior has other labels.
        DetectorError: If the detector is unknown, cannot be opened, or is no detector.
        MissingDependencyError: If a provider is not available here.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | None = None,
        *,
        detector: str | Detector = DEFAULT,
        taxonomy: str | None = None,
        min_face: float | None = None,
        min_confidence: float = 0.0,
        max_error: float | None = None,
        prior: Prior = None,
        tta: TtaMode = "none",
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        batch_size: int = 64,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        # For pickle. A path is made absolute: another process may have another working directory.
        self._settings = {name: value for name, value in locals().items() if name != "self"}
        if isinstance(model, (str, os.PathLike)) and os.path.isfile(model):  # noqa: PTH113
            self._settings["model"] = os.path.abspath(model)  # noqa: PTH100
        if not isinstance(min_confidence, (int, float, np.number)) or not 0 <= min_confidence <= 1:
            raise FerkitError(f"min_confidence is a number between 0 and 1. Received: {min_confidence!r}")
        if max_error is not None and (
            isinstance(max_error, bool)
            or not isinstance(max_error, (int, float, np.number))
            or not 0 < max_error < 1
        ):
            raise FerkitError(f"max_error is a number between 0 and 1. Received: {max_error!r}")
        if tta not in TTA_MODES:
            raise FerkitError(f"tta is one of {', '.join(TTA_MODES)}. Received: {tta!r}")
        for name, value in (("threads", threads), ("batch_size", batch_size), ("max_pixels", max_pixels)):
            if value is not None:
                _check_count(name, value)
        if not isinstance(detector, str) and not _is_detector(detector):
            raise DetectorError(
                "a detector is yunet, yunet:FILE, centerface, none, or an object with a name and a method "
                f"detect. Received: {detector!r}"
            )
        if not isinstance(detector, str) and min_face is not None:
            raise FerkitError("min_face is for detectors by name; set it in the detector object itself")
        require("cv2", "")  # an OpenCV that does not load is reported here, not with the first photo
        classifier = FaceClassifier(model, providers=providers, threads=threads)
        head = classifier.info.head(taxonomy)
        wanted = read_prior(prior, head)
        if wanted is not None:
            self._settings["prior"] = dict(zip(head.labels, wanted.tolist(), strict=True))
        if max_error is not None:
            min_confidence = max(min_confidence, _threshold_for(max_error, head, classifier.info.name))
        self._pipeline = FacePipeline(
            make_detector(detector, min_face=min_face, providers=providers, threads=threads)
            if isinstance(detector, str)
            else detector,
            classifier,
            head.taxonomy,
            Adjustment(head, None if wanted is None else tuple(wanted.tolist())),
            float(min_confidence),
            tta,
            batch_size,
        )
        self._max_pixels = max_pixels

    def __reduce__(self) -> tuple[Callable[[], Recognizer], tuple[()]]:
        """Return the call that makes an equal recognizer, for pickle: its settings, not its networks."""
        return partial(Recognizer, **self._settings), ()

    def copy(self, **changes: Any) -> Recognizer:
        """Return a recognizer with the same settings but for some, by their names."""
        return Recognizer(**(self._settings | changes))

    @property
    def pipeline(self) -> FacePipeline:
        """The steps from an RGB array to faces with expressions."""
        return self._pipeline

    @property
    def info(self) -> ModelInfo:
        """The model's metadata."""
        return self._pipeline.classifier.info

    @property
    def taxonomy(self) -> Taxonomy:
        """The label set of the results."""
        return self._pipeline.taxonomy

    @property
    def detector(self) -> Detector:
        """The face detector."""
        return self._pipeline.detector

    @cached_property
    def _on_one_core(self) -> Recognizer:
        """This recognizer with networks of one thread, for photos that are read at the same time."""
        given = self._settings
        return self if given["threads"] == 1 or given["providers"] else self.copy(threads=1)

    @overload
    def predict(self, photos: ImageSource) -> Photo: ...

    @overload
    def predict(self, photos: list[ImageSource] | tuple[ImageSource, ...]) -> list[Photo]: ...

    @overload
    def predict(self, photos: list[_SomeSource]) -> list[Photo]: ...

    def predict(
        self, photos: ImageSource | list[ImageSource] | list[_SomeSource] | tuple[ImageSource, ...]
    ) -> Photo | list[Photo]:
        """Return the faces and their expressions.

        Args:
            photos: A photo, or a list of photos: paths, bytes, arrays (RGB) or Pillow images.

        Returns:
            The result for the photo, or a list of results. A photo without a face is no error: its ``faces``
            are empty.

        Raises:
            ImageError: If a photo cannot be read, or detection or cropping fails in it.
        """
        several = isinstance(photos, (list, tuple))
        results: list[Photo] = []
        for result in self.predict_each(photos if isinstance(photos, (list, tuple)) else [photos]):
            if isinstance(result, Unreadable):
                raise result.error
            results.append(result)
        return results if several else results[0]

    def predict_each(
        self,
        photos: Iterable[ImageSource | ImageError | NamedSource],
        *,
        pending: int = PENDING_PHOTOS,
        keep_pictures: bool = False,
        workers: int = 1,
    ) -> Iterator[Photo | Unreadable]:
        """Yield the result for each photo; an unreadable photo does not stop the others.

        Faces are classified in batches, and memory does not grow with the number of photos: results come a
        little later than photos are taken.

        Args:
            photos: Photos as in :meth:`predict`, or pairs of a name and a photo; may be an endless iterator.
                An :class:`ferkit.core.errors.ImageError` in place of a photo becomes an ``Unreadable``.
            pending: Photos that may wait until their faces fill a batch, including the last one taken; 1 for
                a slow source such as a camera: each result then comes before the next photo is taken.
            keep_pictures: Whether ``Photo.picture`` is set. At most 64 MiB of pictures, or one photo, wait
                for their batch.
            workers: Photos that are read and searched at a time, each in a thread of its own; it does not
                change the results or their order. Faces are classified in a further thread. From two on each
                call of a network takes one thread. At most four photos per worker and a few batches are
                taken ahead, with ``keep_pictures`` one per worker.

        Yields:
            A result for each photo, in order. An error of ``photos`` itself or of your own detector is raised
            after the results of the photos before it; a :class:`ferkit.core.errors.DetectorError` makes only
            its photo ``Unreadable``.

        Raises:
            FerkitError: If ``pending`` or ``workers`` is not a whole number from 1 on; immediately, not at
                the first result.
        """
        if isinstance(photos, (str, bytes, os.PathLike)):
            raise ImageError(
                f"predict_each takes photos, not one: [photo]. Received: {type(photos).__name__}"
            )
        _check_count("pending", pending)
        _check_count("workers", workers)

        most = pending if workers == 1 else min(pending, self._pipeline.batch_size)

        def is_full(batch: list[_Pending | Unreadable]) -> bool:
            waiting = [item for item in batch if isinstance(item, _Pending)]
            pixels = sum(item.picture.nbytes for item in waiting if item.picture is not None)
            faces = sum(len(item.faces) for item in waiting)
            return len(batch) >= most or faces >= self._pipeline.batch_size or pixels >= PENDING_BYTES

        if workers == 1:
            prepared = (self._prepare(photo, keep_picture=keep_pictures) for photo in photos)
            return (
                result
                for batch in in_batches(prepared, is_full, "photos")
                for result in self._recognize(batch)
            )
        on_one_core = self._on_one_core
        ahead = workers if keep_pictures else 4 * workers
        in_parallel = in_threads(
            lambda photo: on_one_core._prepare(photo, keep_picture=keep_pictures), photos, workers, ahead
        )
        batches = in_batches(in_parallel, is_full, "photos")
        if keep_pictures:
            return (result for batch in batches for result in on_one_core._recognize(batch))
        # The search goes on meanwhile. It takes about three times as long.
        networks = max(1, workers // 4)
        done = in_threads(
            lambda batch: list(on_one_core._recognize(batch)), map(list, batches), networks, networks + 1
        )
        return (result for results in done for result in results)

    def predict_crops(self, crops: NDArray[np.uint8]) -> tuple[Expression, ...]:
        """Return the expressions of face crops, without face detection.

        Args:
            crops: uint8 ``[N, H, W]``, grayscale, 0..255; resized if the model has another input size.

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
        return self._pipeline.classify(fitted)

    def estimate_prior(
        self, photos: Iterable[ImageSource | ImageError | NamedSource], *, workers: int = 1
    ) -> dict[str, float]:
        """Return how frequent the labels are among the faces of photos, for the argument ``prior``.

        It is estimated from the predictions by expectation maximisation (Saerens, Latinne and Decaestecker
        2002), with the known prior counting as much as
        :data:`ferkit.core.priors.STRENGTH` faces. It presumes that faces of one expression look as in
        training; where they do not, the estimate may be worse than the known prior.

        Args:
            photos: As in :meth:`predict_each`; unreadable photos are left out.
            workers: As in :meth:`predict_each`.

        Raises:
            TaxonomyError: If the model does not record the prior of this label set.
        """
        adjustment = self._pipeline.adjustment
        read_prior("uniform", adjustment.head)  # refuses an output without a prior
        known = np.array(adjustment.prior or adjustment.head.prior)
        found = [
            list(face.probabilities.values())
            for result in self.predict_each(photos, workers=workers)
            if not isinstance(result, Unreadable)
            for face in result
        ]
        estimated = estimate_prior(np.reshape(found, (-1, len(known))), known)
        return dict(zip(self.taxonomy.labels, estimated.tolist(), strict=True))

    def video(self, path: str | os.PathLike[str], **options: Unpack[VideoOptions]) -> VideoReading:
        """Return an iterator over the frames of a clip with their faces, tracked and smoothed.

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

    def live(self, source: CameraSource = 0, **options: Unpack[LiveOptions]) -> VideoReading:
        """Return an iterator over the newest frames of a camera with their faces, tracked and smoothed.

        Example:
            >>> with recognizer.live("camera:0") as frames:  # doctest: +SKIP
            ...     for frame in frames:
            ...         print(frame.time, [(face.track, face.label) for face in frame.faces])

        Args:
            source: A camera's number, its name, or an object with the interface of
                :class:`ferkit.video.live.Camera`.
            **options: See :func:`ferkit.video.recognition.recognize_live`.

        Raises:
            VideoError: If the camera cannot be opened or gives no frame, or an option is out of range.
            MissingDependencyError: If the extra ``video`` is not installed.
        """
        from ferkit.video.recognition import recognize_live

        return recognize_live(self, source, **options)

    def crops(self, photo: ImageSource) -> NDArray[np.uint8]:
        """Return the network's input for a photo's faces: uint8 ``[N, S, S]``, in the order of the faces.

        Raises:
            ImageError: If the photo cannot be read, or detection or cropping fails in it.
        """
        pending = self._prepare(photo, keep_picture=False)
        if isinstance(pending, Unreadable):
            raise pending.error
        return pending.faces.crops

    def explain(self, source: ImageSource, photo: Photo) -> tuple[Explanation, ...]:
        """Return class activation maps: for each face the evidence for its most probable label.

        A map is the mean over the crop and its mirror image.

        Args:
            source: The photo, or its picture if that was kept.
            photo: The result of this recognizer for it.

        Returns:
            One map per face, in the order of ``photo.faces``.

        Raises:
            TaxonomyError: If ``photo`` has another label set.
            ImageError: If the photo cannot be read, its size is not that of ``photo``, or the result comes
                from a face detector and this recognizer has none.
            ModelFileError: If the model has no class activation maps for this label set.
        """
        self._check_own(photo)
        crops = self._pipeline.crop(to_gray(photo.load(source)), photo.faces)
        # Strided convolutions pad one side, so maps are shifted to the upper left: by 5 % of the crop in the
        # embedded model. The mean with the mirror image's map has no shift sideways.
        maps, mirrored = (
            self._pipeline.classifier.cams(views, self.taxonomy.id, batch_size=self._pipeline.batch_size)
            for views in (crops, np.ascontiguousarray(crops[:, :, ::-1]))
        )
        maps = (maps + mirrored[:, :, :, ::-1]) * np.float32(0.5)
        scale = self.info.view_size / self.info.input_size  # the part of the crop that the network sees
        squares = self._pipeline.corners(photo.faces, photo.width, photo.height)
        explained = []
        for square, face, of_labels in zip(squares, photo.faces, maps, strict=True):
            best = int(np.argmax(list(face.probabilities.values())))
            heat = np.maximum(of_labels[best], 0)
            middle = square.mean(axis=0)
            corners = tuple((float(x), float(y)) for x, y in (square - middle) * scale + middle)
            explained.append(
                Explanation(self.taxonomy.labels[best], corners, heat / (heat.max() or np.float32(1)))
            )
        return tuple(explained)

    def _check_own(self, photo: Photo) -> None:
        """Refuse a result that visibly comes from another recognizer."""
        labels = self.taxonomy.labels
        others = [face.probabilities for face in photo.faces if tuple(face.probabilities) != labels]
        if photo.taxonomy != self.taxonomy.id or others:
            found = f" ({', '.join(others[0])})" if others else ""
            raise TaxonomyError(
                f"this recognizer has the label set {self.taxonomy.id} ({', '.join(labels)}). Received: a "
                f"result in {photo.taxonomy}{found}; use the recognizer that made the result"
            )
        whole = (0, 0, photo.width, photo.height)
        if self._pipeline.takes_whole_pictures and [face.box for face in photo.faces] != [whole]:
            raise ImageError(
                "this recognizer has the detector none, so each picture is one face crop. Received: a result "
                f"with {len(photo.faces)} detected faces; use the recognizer that made the result"
            )

    def _prepare(
        self, photo: ImageSource | ImageError | NamedSource, *, keep_picture: bool
    ) -> _Pending | Unreadable:
        """Read a photo, detect its faces and crop them."""
        if isinstance(photo, tuple):
            source, photo = photo
        else:
            source = os.fspath(photo) if isinstance(photo, (str, os.PathLike)) else None
            if source is not None and is_data_uri(source):
                source = None
        start = time.perf_counter()
        if isinstance(photo, ImageError):
            return Unreadable(source, photo, 0.0)
        try:
            rgb, size = self._load(photo)
        except ImageError as error:
            return Unreadable(source, error, time.perf_counter() - start)
        try:
            detections = self._detect(rgb, size)
            searched = rgb
            if size != (rgb.shape[1], rgb.shape[0]):
                heights = [(d.box[3] - d.box[1]) * rgb.shape[1] / size[0] for d in detections]
                small = min(heights, default=_LEAST_HEIGHT) < _LEAST_HEIGHT
                if small or keep_picture:
                    rgb = load_image(photo, max_pixels=self._max_pixels)
                if small:
                    searched = rgb
            faces = self._pipeline.prepare(to_gray(searched), detections, size)
        except (DetectorError, ImageError) as error:
            # For example a picture too long to be a face crop, or an empty box of a user's own detector.
            failure = ImageError(f"{source or 'the picture'}: {error}")
            failure.__cause__ = error
            return Unreadable(source, failure, time.perf_counter() - start)
        return _Pending(source, faces, rgb if keep_picture else None, time.perf_counter() - start)

    def _load(self, photo: ImageSource) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Read a photo, reduced where the detector needs no more pixels; return it and its own size."""
        detector = self.detector
        if isinstance(detector, ReducingDetector) and detector.longest_side is not None:
            return load_reduced(photo, detector.longest_side, max_pixels=self._max_pixels)
        rgb = load_image(photo, max_pixels=self._max_pixels)
        return rgb, (rgb.shape[1], rgb.shape[0])

    def _detect(self, rgb: NDArray[np.uint8], size: tuple[int, int]) -> Sequence[Detection]:
        """Find the faces of a photo that may have been reduced, in pixels of its own size."""
        factors = size[0] / rgb.shape[1], size[1] / rgb.shape[0]
        if isinstance(self.detector, ReducingDetector) and factors != (1, 1):
            return [face.scaled(*factors) for face in self.detector.detect(rgb, factors[0])]
        return self.detector.detect(rgb)

    def _recognize(self, batch: Sequence[_Pending | Unreadable]) -> Iterator[Photo | Unreadable]:
        start = time.perf_counter()
        found = list(self._pipeline.recognize([item.faces for item in batch if isinstance(item, _Pending)]))
        per_face = (time.perf_counter() - start) / max(1, sum(map(len, found)))
        in_order = iter(found)
        for item in batch:
            if isinstance(item, Unreadable):
                yield item
                continue
            faces = next(in_order)
            yield Photo(
                source=item.source,
                width=item.faces.width,
                height=item.faces.height,
                taxonomy=self.taxonomy.id,
                faces=faces,
                labels=self.taxonomy.labels,
                picture=item.picture,
                seconds=item.seconds + per_face * len(faces),
            )


def _threshold_for(max_error: float, head: HeadInfo, model: str) -> float:
    """Return the confidence from which on faces are answered.

    Raises:
        ModelFileError: If the model has no coverage curve, or it does not reach the error.
    """
    if head.coverage is None:
        raise ModelFileError(
            f"model {model!r} has no coverage curve for {head.id!r}, which max_error needs; "
            "use min_confidence"
        )
    return head.coverage.threshold_for(max_error)


def _check_count(name: str, value: object) -> None:
    """Refuse a value that is not a whole number from 1 on.

    Raises:
        FerkitError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise FerkitError(f"{name} must be a whole number. Received: {value!r}")
    if value < 1:
        raise FerkitError(f"{name} must be at least 1. Received: {value}")


def _is_detector(thing: object) -> bool:
    """Whether an object has the interface of :class:`ferkit.detect.Detector`; a detector class has not."""
    named = isinstance(getattr(thing, "name", None), str)
    return named and callable(getattr(thing, "detect", None)) and not isinstance(thing, type)
