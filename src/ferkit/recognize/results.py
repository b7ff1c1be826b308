"""Results: expressions, faces and photos. They are frozen, and their numbers are not rounded."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import FerkitError, ImageError, MissingDependencyError, OutputError, TaxonomyError
from ferkit.core.images import DEFAULT_MAX_PIXELS, ImageSource, encode_image, load_image, write_image
from ferkit.core.taxonomy import Taxonomy
from ferkit.recognize.quality import Quality

if TYPE_CHECKING:
    from pandas import DataFrame

Table: TypeAlias = tuple[list[str], list[list[Any]]]
"""Names of columns, and rows; unknown values are None."""

UNCERTAIN = "uncertain"
"""The label of a face whose largest probability is below the required confidence."""

LANDMARKS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
"""Names of the five landmarks; left and right as seen in the picture."""


_LABELS_SHOWN = 4  # in the repr of a photo
_NOTEBOOK_SIDE = 720  # pixels
_QUALITY = tuple(field.name for field in fields(Quality))


class ByLabel(Mapping[str, float]):
    """A number for each label, in order: an immutable mapping that can be pickled, copied and hashed.

    Example:
        >>> shares = ByLabel({"happy": 0.75, "sad": 0.25})
        >>> shares["happy"], list(shares)
        (0.75, ['happy', 'sad'])
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = dict(values)

    def __getitem__(self, label: str) -> float:
        """Return the number of a label."""
        return self._values[label]

    def __iter__(self) -> Iterator[str]:
        """Return the labels, in order."""
        return iter(self._values)

    def __len__(self) -> int:
        """Return the number of labels."""
        return len(self._values)

    def __hash__(self) -> int:
        """Return the same hash for equal mappings, whatever their order."""
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        """Return the call that makes an equal object."""
        return f"ByLabel({self._values!r})"

    def __reduce__(self) -> tuple[type[ByLabel], tuple[dict[str, float]]]:
        """Return the call that makes an equal object, for pickle and copy."""
        return ByLabel, (self._values,)


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression of a face.

    Attributes:
        label: The most probable label, or ``uncertain``.
        confidence: The largest probability, calibrated, 0..1.
        probabilities: Probability of every label, in the taxonomy's order; they sum to one.
    """

    label: str
    confidence: float
    probabilities: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "label": self.label,
            "confidence": self.confidence,
            "probabilities": dict(self.probabilities),
        }


@dataclass(frozen=True, slots=True, repr=False)
class Face:
    """A face in a photo.

    Attributes:
        box: Left, top, right, bottom in pixels of the upright photo; may reach beyond its borders.
        score: Confidence of the detector, 0..1.
        landmarks: x, y in pixels of left eye, right eye, nose, left and right corner of the mouth (left
            and right as seen in the picture); None if the detector gives none.
        expression: The expression of the face.
        quality: Size, sharpness, pose and warning flags; None if it was not measured.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: tuple[tuple[float, float], ...] | None
    expression: Expression
    quality: Quality | None = None

    @property
    def label(self) -> str:
        """The most probable label, or ``uncertain``."""
        return self.expression.label

    @property
    def confidence(self) -> float:
        """The largest probability."""
        return self.expression.confidence

    @property
    def probabilities(self) -> Mapping[str, float]:
        """Probability of every label."""
        return self.expression.probabilities

    def __repr__(self) -> str:
        """Return the label, its probability and the box in one line."""
        left, top, right, bottom = (round(value) for value in self.box)
        return f"<Face {self.label} {self.confidence:.0%} at {left},{top} {right - left}x{bottom - top}>"

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        marks = self.landmarks
        return {
            "box": list(self.box),
            "score": self.score,
            "landmarks": None
            if marks is None
            else {n: list(m) for n, m in zip(LANDMARKS, marks, strict=True)},
            "quality": None if self.quality is None else self.quality.to_dict(),
            **self.expression.to_dict(),
        }


@dataclass(frozen=True, slots=True, repr=False)
class Photo(Sequence[Face]):
    """The result for a photo: a sequence of its faces. A notebook shows it as an annotated picture.

    Attributes:
        source: The file or the name given by the caller; None for bytes, arrays and Pillow images.
        width: In pixels, upright.
        height: In pixels, upright.
        taxonomy: Id of the label set.
        faces: The faces, by falling score of the detector; empty if there is none.
        labels: The labels of the taxonomy, in order; empty in a result that was made without them.
        picture: uint8 ``[H, W, 3]``, RGB; None unless pictures are kept (``keep_pictures``).
        seconds: Time that one worker took from reading to the result; None in a result made by hand. Of the
            network's time for a batch the photo has the share of its faces.
    """

    source: str | None
    width: int
    height: int
    taxonomy: str
    faces: tuple[Face, ...]
    labels: tuple[str, ...] = ()
    picture: NDArray[np.uint8] | None = field(default=None, compare=False)
    seconds: float | None = field(default=None, compare=False)

    def __len__(self) -> int:
        """Return the number of faces."""
        return len(self.faces)

    @overload
    def __getitem__(self, index: int) -> Face: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Face, ...]: ...

    def __getitem__(self, index: int | slice) -> Face | tuple[Face, ...]:
        """Return a face, or a tuple of faces for a slice."""
        return self.faces[index]

    def __repr__(self) -> str:
        """Return source, size and the labels of the first faces in one line."""
        name = "" if self.source is None else f" {self.source!r}"
        labels = ", ".join(f"{face.label} {face.confidence:.0%}" for face in self.faces[:_LABELS_SHOWN])
        more = ", ..." if len(self) > _LABELS_SHOWN else ""
        faces = f"{len(self)} face{'' if len(self) == 1 else 's'}"
        return f"<Photo{name} {self.width} x {self.height}: {faces}{labels and f' ({labels}{more})'}>"

    def _repr_html_(self) -> str:
        """Return the annotated picture, if it can be read, and the text of ``repr``, for notebooks."""
        text = html.escape(repr(self))
        try:
            drawn = self.draw()
        except ImageError:
            return text
        import cv2

        scale = min(1.0, _NOTEBOOK_SIDE / max(drawn.shape[:2]))
        small = cv2.resize(drawn, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        data = base64.b64encode(encode_image(np.asarray(small, np.uint8), ".jpg")).decode()
        return f'<img src="data:image/jpeg;base64,{data}"><br>{text}'

    def load(self, picture: ImageSource | None = None) -> NDArray[np.uint8]:
        """Return the photo itself, uint8 ``[H, W, 3]``, RGB.

        Args:
            picture: The photo; by default ``self.picture``, or else the file ``self.source``.

        Raises:
            ImageError: If the photo cannot be read, has another size, or was neither kept nor read from a
                file.
        """
        known = next((one for one in (picture, self.picture, self.source) if one is not None), None)
        if known is None:
            raise ImageError("this photo was read from memory and not kept; pass it as the argument picture")
        rgb = load_image(known, max_pixels=max(DEFAULT_MAX_PIXELS, self.width * self.height))
        if rgb.shape[:2] != (self.height, self.width):
            raise ImageError(
                f"the result belongs to a photo of {self.width} x {self.height} pixels. "
                f"Received: {rgb.shape[1]} x {rgb.shape[0]}"
            )
        return rgb

    def draw(
        self,
        picture: ImageSource | None = None,
        *,
        explanations: Sequence[Explanation] = (),
        landmarks: bool = True,
    ) -> NDArray[np.uint8]:
        """Return the photo with its faces drawn in, uint8 ``[H, W, 3]``, RGB.

        Args:
            picture: As in :meth:`load`.
            explanations: Activation maps to lay over the faces; see :meth:`ferkit.Recognizer.explain`.
            landmarks: Whether the landmarks are drawn.

        Raises:
            ImageError: As :meth:`load`.
        """
        from ferkit.recognize.drawing import draw_faces

        return draw_faces(self.load(picture), self, explanations=explanations, landmarks=landmarks)

    def save(
        self,
        path: str | os.PathLike[str],
        picture: ImageSource | None = None,
        *,
        explanations: Sequence[Explanation] = (),
        landmarks: bool = True,
    ) -> None:
        """Write the photo with its faces drawn in; the suffix of ``path`` gives the format.

        Arguments are those of :meth:`draw`.

        Raises:
            ImageError: As :meth:`draw`, or if the format is unknown or cannot hold the picture.
            OutputError: If the file cannot be written, or is the photo itself.
        """
        if self.source is not None and os.path.realpath(path) == os.path.realpath(self.source):
            raise OutputError(f"{os.fspath(path)} is the photo itself; choose another name")
        write_image(path, self.draw(picture, explanations=explanations, landmarks=landmarks))

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "source": self.source,
            "width": self.width,
            "height": self.height,
            "taxonomy": self.taxonomy,
            "faces": [face.to_dict() for face in self.faces],
        }

    def to_pandas(self) -> DataFrame:
        """Return a table with a row per face, or one row if there is none; see :func:`to_pandas`."""
        return to_pandas([self])

    def table(self) -> Table:
        """Return the names of the columns, and a row per face, or one row if there is none."""
        labels = self.labels or (self.faces[0].probabilities if self.faces else ())
        return photo_columns(labels), photo_rows(self)


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """The class activation map of a face (Zhou et al. 2016): the evidence for its label at each position.

    Attributes:
        label: The most probable label, also of a face that is ``uncertain``.
        corners: x, y in pixels of the photo of the map's upper left, upper right, lower right and lower left
            corner.
        heat: float32 ``[h, w]``, 0..1: the evidence for the label, relative to its maximum; all 0 if there is
            no evidence.
    """

    label: str
    corners: tuple[tuple[float, float], ...]
    heat: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A photo that could not be read, or in which detection or cropping failed.

    Attributes:
        source: The file or the name given by the caller; None for bytes, arrays and Pillow images.
        error: The reason; if the detector failed, ``__cause__`` is its error.
        seconds: Time until it failed; None in a result made by hand.
    """

    source: str | None
    error: ImageError
    seconds: float | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {"source": self.source, "error": str(self.error)}


def expressions(
    probabilities: NDArray[np.float32], taxonomy: Taxonomy, *, min_confidence: float = 0.0
) -> tuple[Expression, ...]:
    """Return the expressions of probabilities float32 ``[N, K]``, uncertain below ``min_confidence``."""
    found = []
    for row in probabilities:
        values = row.tolist()
        best = int(np.argmax(row))
        label = taxonomy.labels[best] if values[best] >= min_confidence else UNCERTAIN
        named = ByLabel(dict(zip(taxonomy.labels, values, strict=True)))
        found.append(Expression(label, values[best], named))
    return tuple(found)


@runtime_checkable
class Result(Protocol):
    """A result that sinks write: a photo, or a frame of a clip."""

    @property
    def taxonomy(self) -> str:
        """Id of the label set."""
        ...

    def table(self) -> Table:
        """Return the names of the columns, and the rows."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        ...


def face_columns(labels: Iterable[str]) -> list[str]:
    """Return the names of the columns of :func:`face_cells`."""
    return [
        *("left", "top", "right", "bottom", "score"),
        *(f"{name}_{axis}" for name in LANDMARKS for axis in "xy"),
        *_QUALITY,
        *("label", "confidence"),
        *(f"p_{label}" for label in labels),
    ]


def face_cells(face: Face) -> list[Any]:
    """Return a face as cells of a table, flags joined by ``;``; unknown values are None."""
    q = face.quality
    return [
        *(*face.box, face.score),
        *(value for mark in face.landmarks or ((None, None),) * len(LANDMARKS) for value in mark),
        *((None,) * len(_QUALITY) if q is None else (q.to_dict() | {"flags": ";".join(q.flags)}).values()),
        *(face.label, face.confidence, *face.probabilities.values()),
    ]


def photo_columns(labels: Iterable[str]) -> list[str]:
    """Return the names of the columns of :func:`photo_rows`."""
    return ["source", "faces", "face", *face_columns(labels)]


def photo_rows(photo: Photo) -> list[list[Any]]:
    """Return a row per face; a photo without a face has one row, which ends after the number of faces."""
    which = [photo.source, len(photo.faces)]
    return [[*which, number, *face_cells(face)] for number, face in enumerate(photo.faces)] or [which]


def to_pandas(results: Result | Iterable[Result | Unreadable]) -> DataFrame:
    """Return a table of photos, or of the frames of a clip, with the columns and rows of the CSV.

    It has a row per face. A photo or a frame without a face has one row, whose other columns are empty; an
    unreadable photo has no row.

    Args:
        results: Photos, or frames, all of one label set; or one of them.

    Raises:
        TaxonomyError: If the results have several label sets.
        FerkitError: If there are both photos and frames.
        MissingDependencyError: If pandas is not installed; ferkit itself does not need it.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "to_pandas needs the library pandas, which ferkit does not install; "
            "install it with `pip install pandas`"
        ) from error
    if isinstance(results, Result):
        results = [results]
    tables = [(result.taxonomy, *result.table()) for result in results if not isinstance(result, Unreadable)]
    if len({tuple(name for name in names if not name.startswith("p_")) for _, names, _ in tables}) > 1:
        raise FerkitError("a table has photos or frames; make one table of each. Received: both")
    label_sets = {(taxonomy, tuple(_labels(names))): None for taxonomy, names, _ in tables}
    # A photo without a face that was made by hand may have no labels.
    if len({taxonomy for taxonomy, _ in label_sets}) > 1 or sum(bool(labels) for _, labels in label_sets) > 1:
        received = " and ".join(f"{taxonomy} ({', '.join(labels)})" for taxonomy, labels in label_sets)
        raise TaxonomyError(f"a table has one label set; make one table of each. Received: {received}")
    columns = max((names for _, names, _ in tables), key=len, default=[])
    rows = [row + [None] * (len(columns) - len(row)) for _, _, some in tables for row in some]
    return pd.DataFrame(rows, columns=columns)


def _labels(columns: list[str]) -> list[str]:
    """Return the labels of a table with these columns."""
    return [name.removeprefix("p_") for name in columns if name.startswith("p_")]
