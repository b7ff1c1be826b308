"""All that the service takes from the rooms below it: photos, frames, clips and models."""

from __future__ import annotations

import base64
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ferkit.core.crops import TtaMode
from ferkit.core.errors import DetectorError, ImageError, ModelFileError, VideoError
from ferkit.core.images import encode_image, load_image
from ferkit.core.palette import UNCERTAIN as UNCERTAIN_COLOUR
from ferkit.core.palette import palette
from ferkit.core.taxonomy import Taxonomy
from ferkit.detect import DEFAULT, Detection, Detector, make_detector
from ferkit.detect.base import ReducingDetector
from ferkit.detect.whole import WholePicture
from ferkit.recognize import Explanation, Recognizer, Unreadable
from ferkit.recognize.drawing import draw_faces
from ferkit.recognize.results import UNCERTAIN
from ferkit.service.problems import Problem
from ferkit.service.settings import Settings

if TYPE_CHECKING:
    from ferkit.video.process import VideoOutputs

_RECOGNIZERS = 8
_HEAT = 96  # pixels of a side of an activation map's PNG
_LIVE_RATE = 15.0  # frames a second that a webcam's tracker counts on
_LIVE_DETECT_EVERY = 0.2  # seconds
_LIVE_GAP = 1.0
_SMOOTHING_SECONDS = 0.4
_PLAYLISTS = ("concat", "dash", "hls")  # FFmpeg's formats of files that name other files


@dataclass(frozen=True, slots=True)
class Options:
    """How faces are found and classified."""

    taxonomy: str | None = None  # id of the taxonomy; None for the model's default
    # Height in pixels of the smallest face wanted; None leaves it to the detector.
    min_face: int | None = None
    tta: TtaMode = "none"  # mode of test-time augmentation


@dataclass(frozen=True, slots=True)
class Upload:
    """A photo that was sent."""

    name: str | None  # the client's name for it, if it has one
    content: bytes  # its bytes


class _FewFaces:
    """A detector that refuses pictures with more faces than allowed."""

    def __init__(self, detector: Detector, limit: int) -> None:
        self._detector = detector
        self._limit = limit

    @property
    def name(self) -> str:
        return self._detector.name

    @property
    def longest_side(self) -> int | None:
        return self._detector.longest_side if isinstance(self._detector, ReducingDetector) else None

    def detect(self, image: NDArray[np.uint8], reduced: float = 1.0) -> tuple[Detection, ...]:
        detector = self._detector
        found = (
            detector.detect(image, reduced)
            if isinstance(detector, ReducingDetector)
            else detector.detect(image)
        )
        if len(found) > self._limit:
            raise DetectorError(
                f"it has {len(found)} faces, more than the limit of {self._limit}; cut it into parts, or "
                "raise min_face"
            )
        return found


class Engine:
    """Recognizers by their options. Safe to use from several threads at once."""

    def __init__(self, settings: Settings) -> None:
        import cv2

        cv2.setNumThreads(1)
        # What Pillow says of damaged files is said by the error of the request.
        warnings.filterwarnings("ignore", module="PIL")
        logging.getLogger("PIL").addHandler(logging.NullHandler())
        self._settings = settings
        self.recognizer = lru_cache(_RECOGNIZERS)(self._recognizer)
        """Return the recognizer for options; raise FerkitError if model or detector do not allow them."""
        self.default = self.recognizer(Options())

    def _recognizer(self, options: Options) -> Recognizer:
        settings = self._settings
        providers = list(settings.providers) or None
        detector = make_detector(
            settings.detector or DEFAULT, min_face=options.min_face, providers=providers, threads=1
        )
        return Recognizer(
            settings.model,
            detector=detector if isinstance(detector, WholePicture) else _FewFaces(detector, settings.faces),
            taxonomy=options.taxonomy,
            min_confidence=settings.min_confidence,
            max_error=settings.max_error,
            prior=settings.prior,
            tta=options.tta,
            providers=providers,
            threads=1,
            max_pixels=settings.pixels,
        )

    def models(self) -> dict[str, Any]:
        """Return the model, its taxonomies and the palette, as plain types for JSON."""
        info = self.default.info
        return {
            "models": [
                {
                    "name": info.name,
                    "architecture": info.architecture,
                    "parameters": info.parameters,
                    "input_size": info.input_size,
                    "default_taxonomy": self.default.taxonomy.id,
                    "taxonomies": [
                        {"id": head.id, "labels": list(head.labels), "activation_maps": head.cam}
                        for head in info.taxonomies
                    ],
                }
            ],
            "detector": self.default.detector.name,
            "palette": colours(head.taxonomy for head in info.taxonomies),
        }

    def predict(
        self,
        uploads: Sequence[Upload],
        options: Options,
        *,
        explain: bool = False,
        annotated: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> list[dict[str, Any]]:
        """Return what was found in photos, in the form of ``ferkit predict --format json``.

        ``explain`` adds an activation map to every face, ``annotated`` the photo with the faces drawn in.
        ``check`` is called between photos; it raises an error to stop.

        Returns:
            An object per photo. One that is unreadable, or cannot be drawn, among others, has only
            ``source`` and ``error``.

        Raises:
            ImageError: If a single photo is unreadable or cannot be drawn.
            FerkitError: If an option does not fit the model.
        """
        recognizer = self.recognizer(options)
        if explain and not recognizer.info.head(recognizer.taxonomy.id).cam:
            raise ModelFileError(
                f"model {recognizer.info.name!r} has no class activation maps for "
                f"{recognizer.taxonomy.id!r}; leave explain out"
            )
        results = []
        for upload in uploads:
            check()
            try:
                (result,) = recognizer.predict_each([upload.content])
                if isinstance(result, Unreadable):
                    raise result.error
                photo = replace(result, source=upload.name)
                document = photo.to_dict()
                if explain or annotated:
                    check()
                    rgb = load_image(upload.content, max_pixels=self._settings.pixels)
                    maps = recognizer.explain(rgb, photo) if explain else ()
                    for face, explanation in zip(document["faces"], maps, strict=False):
                        face["activation_map"] = _activation_map(explanation)
                    if annotated:
                        drawn = draw_faces(rgb, photo, explanations=maps)
                        document["annotated"] = _data_url(encode_image(drawn, ".jpg"), "jpeg")
            except ImageError as error:
                if len(uploads) == 1:
                    raise
                document = {"source": upload.name, "error": str(error)}
            results.append(document)
        return results

    def live(self, options: Options) -> Live:
        """Return the state of one webcam stream."""
        return Live(self.recognizer(options), self._settings.frame_pixels)


class Live:
    """Frames of one camera: tracked, and smoothed over time.

    A frame that comes while another is classified, which a thread may still do after its time is up, is
    refused. Frames of more than ``max_pixels`` are refused.
    """

    def __init__(self, recognizer: Recognizer, max_pixels: int) -> None:
        from ferkit.video.recognition import FrameWork
        from ferkit.video.smoothing import Smoother, Smoothing
        from ferkit.video.tracking import FaceTracker

        self._max_pixels = max_pixels
        every = 0.0 if isinstance(recognizer.detector, WholePicture) else _LIVE_DETECT_EVERY
        tracker = FaceTracker(recognizer.detector, every=every, max_gap=_LIVE_GAP, rate=_LIVE_RATE)
        self._work = FrameWork(recognizer, tracker, Smoother(Smoothing(seconds=_SMOOTHING_SECONDS)))
        self._last = 0.0
        self._lock = threading.Lock()

    def frame(self, content: bytes, index: int, time: float) -> dict[str, Any]:
        """Return the faces of the next frame, in the form of a frame of ``ferkit video --jsonl``.

        ``time`` is in seconds, and does not fall from frame to frame.

        Raises:
            ImageError: If the frame is unreadable or too large.
            DetectorError: If the detector fails.
            Problem: If an earlier frame is still being classified.
        """
        from ferkit.video.clip import ClipFrame

        if not self._lock.acquire(blocking=False):
            raise Problem(503, "an earlier frame is still being classified; send fewer or smaller frames")
        try:
            rgb = load_image(content, max_pixels=self._max_pixels)
            result = self._work.frame(ClipFrame(index, Fraction(time), Fraction(time - self._last), rgb))
            self._last = time
        finally:
            self._lock.release()
        return result.to_dict()


def process_clip(
    engine: Engine,
    clip: Path,
    outputs: VideoOutputs,
    options: Options,
    settings: Settings,
    *,
    fps: float | None,
    progress: Callable[[int, float | None, dict[str, Any]], None],
    stop: threading.Event,
) -> dict[str, Any]:
    """Classify the faces of a clip and write its results.

    At most ``fps`` frames a second are read; None reads all. ``progress`` is called after each frame with the
    number of frames, the share that is done, if known, and the frame's results. ``stop`` ends the clip at the
    next frame.

    Returns:
        The summary, in the form of ``ferkit video --json``.

    Raises:
        FerkitError: If the clip cannot be read or is beyond a limit.
    """
    from ferkit.video.clip import Clip
    from ferkit.video.process import process_video

    info = Clip(clip, max_pixels=settings.pixels).info
    if info.container in _PLAYLISTS:
        raise VideoError(f"{clip} is a playlist ({info.container}); a video file was expected")
    seconds = info.duration
    if seconds is not None and seconds > settings.clip_seconds:
        raise VideoError(
            f"the clip is {seconds:.0f} seconds long, more than the limit of {settings.clip_seconds:.0f}; "
            "cut it, or raise --clip-seconds"
        )
    count = 0

    def moved(frame: Any, share: float | None) -> None:
        nonlocal count
        count += 1
        if count > settings.clip_frames or frame.time > settings.clip_seconds:
            raise VideoError(
                f"the clip has more than {settings.clip_frames} frames or {settings.clip_seconds:.0f} "
                "seconds; cut it, read fewer frames (fps), or raise --clip-frames or --clip-seconds"
            )
        progress(count, share, frame.to_dict())

    summary = process_video(
        engine.recognizer(options),
        clip,
        outputs,
        progress=moved,
        fps=fps,
        max_pixels=settings.pixels,
        stop=stop,
    )
    return {
        **summary.timeline.to_dict(),
        "damaged": summary.damaged,
        "notes": [note.replace(str(clip), "the clip") for note in summary.notes],
    }


def colours(taxonomies: Iterable[Taxonomy]) -> dict[str, str]:
    """Return the colour of every label of taxonomies, and of ``uncertain``: ``#rrggbb``."""
    found = {label: colour.hex for one in taxonomies for label, colour in palette(one.labels).items()}
    return {**found, UNCERTAIN: UNCERTAIN_COLOUR.hex}


def _activation_map(explanation: Explanation) -> dict[str, Any]:
    return {
        "label": explanation.label,
        "corners": [list(corner) for corner in explanation.corners],
        "png": _data_url(_heat_png(explanation.heat), "png"),
    }


def _heat_png(heat: NDArray[np.float32]) -> bytes:
    """Return a map as a PNG with transparency: red where it is hottest, clear where it is cold."""
    import cv2
    from PIL import Image

    fine = np.clip(cv2.resize(heat, (_HEAT, _HEAT), interpolation=cv2.INTER_CUBIC), 0, 1)
    colours = cv2.applyColorMap(np.rint(fine * 230).astype(np.uint8), cv2.COLORMAP_JET)[:, :, ::-1]
    alpha = np.rint(fine * 170).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([colours, alpha])).save(buffer, "PNG")
    return buffer.getvalue()


def _data_url(content: bytes, kind: Literal["png", "jpeg"]) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
