"""What comes out of the instrument: expressions, faces, photos. Frozen; what networks say is not rounded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import FerkitError, ImageError, MissingDependencyError, TaxonomyError
from ferkit.core.taxonomy import Taxonomy
from ferkit.recognize.quality import Quality

if TYPE_CHECKING:
    from pandas import DataFrame

Table: TypeAlias = tuple[list[str], list[list[Any]]]
"""Names of columns, and rows; None stands where nothing is known."""

UNCERTAIN = "uncertain"
"""The label where no probability reaches the confidence that the caller asks for."""

LANDMARKS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
"""Names of the five landmarks; left and right as seen in the picture."""


class ByLabel(Mapping[str, float]):
    """A number for each label, in order. It cannot be changed; it can be pickled, copied and hashed.

    Args:
        values: The numbers; they are copied.

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
        """Return the same for all that are equal; as for every mapping, the order does not count."""
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        """Return what would make it again."""
        return f"ByLabel({self._values!r})"

    def __reduce__(self) -> tuple[type[ByLabel], tuple[dict[str, float]]]:
        """Return how to make it again, for pickle and copy."""
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


@dataclass(frozen=True, slots=True)
class Face:
    """A face in a photo.

    Attributes:
        box: Left, top, right, bottom in pixels of the upright photo; may reach beyond its borders.
        score: How sure the detector is that this is a face, 0..1.
        landmarks: x, y in pixels of left eye, right eye, nose, left and right corner of the mouth (left
            and right as seen in the picture); None where the detector gives none.
        expression: What the face shows.
        quality: Size, sharpness, pose, and what speaks against the face; None where nobody looked.
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


@dataclass(frozen=True, slots=True)
class Photo:
    """What was found in a photo.

    Attributes:
        source: The file, or None for bytes, arrays and Pillow images.
        width: In pixels, upright.
        height: In pixels, upright.
        taxonomy: Id of the label set.
        faces: The faces, the surest first; empty if there is none.
        labels: The labels of the taxonomy, in order, also where there is no face; empty in what was put
            together without them.
    """

    source: str | None
    width: int
    height: int
    taxonomy: str
    faces: tuple[Face, ...]
    labels: tuple[str, ...] = ()

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
    """Where in a face the network saw its leading label: a class activation map (Zhou et al. 2016).

    Attributes:
        label: The most probable label, also where the face is called ``uncertain``.
        corners: x, y in pixels of the photo of the map's upper left, upper right, lower right and lower left
            corner.
        heat: float32 ``[h, w]``, 0..1: how much each place speaks for the label, 1 where the most; all 0
            where none does.
    """

    label: str
    corners: tuple[tuple[float, float], ...]
    heat: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A photo that could not be read, or whose faces could not be found or cut out, among others that could.

    Attributes:
        source: The file, or None for bytes, arrays and Pillow images.
        error: Why; its ``__cause__`` is the error of the detector, if that failed.
    """

    source: str | None
    error: ImageError


def expressions(
    probabilities: NDArray[np.float32], taxonomy: Taxonomy, *, min_confidence: float = 0.0
) -> tuple[Expression, ...]:
    """Turn probabilities float32 ``[N, K]`` into expressions; below ``min_confidence`` they are uncertain."""
    found = []
    for row in probabilities:
        values = row.tolist()
        best = int(np.argmax(row))
        label = taxonomy.labels[best] if values[best] >= min_confidence else UNCERTAIN
        named = ByLabel(dict(zip(taxonomy.labels, values, strict=True)))
        found.append(Expression(label, values[best], named))
    return tuple(found)


class Tabular(Protocol):
    """A result that can be a part of a table."""

    @property
    def taxonomy(self) -> str:
        """Id of the label set."""
        ...

    def table(self) -> Table:
        """Return the names of the columns, and the rows."""
        ...


def landmark_columns() -> list[str]:
    """Return the names of the columns of :func:`landmark_cells`."""
    return [f"{name}_{axis}" for name in LANDMARKS for axis in "xy"]


def landmark_cells(face: Face) -> list[float | None]:
    """Return a face's landmarks as cells of a table; None where it has none."""
    return [value for mark in face.landmarks or ((None, None),) * len(LANDMARKS) for value in mark]


QUALITY_COLUMNS = ("size", "sharpness", "yaw", "pitch", "roll", "outside", "flags")
"""Names of the columns of :func:`quality_cells`."""


def quality_cells(face: Face) -> list[Any]:
    """Return a face's quality as cells of a table; flags are separated by ``;``. None where nobody looked."""
    q = face.quality
    if q is None:
        return [None] * len(QUALITY_COLUMNS)
    return [q.size, q.sharpness, q.yaw, q.pitch, q.roll, q.outside, ";".join(q.flags)]


def face_columns(labels: Iterable[str]) -> list[str]:
    """Return the names of the columns of :func:`face_cells`."""
    return [
        *("left", "top", "right", "bottom", "score"),
        *landmark_columns(),
        *QUALITY_COLUMNS,
        *("label", "confidence"),
        *(f"p_{label}" for label in labels),
    ]


def face_cells(face: Face) -> list[Any]:
    """Return a face as cells of a table; None stands where nothing is known."""
    shown = [face.label, face.confidence, *face.probabilities.values()]
    return [*face.box, face.score, *landmark_cells(face), *quality_cells(face), *shown]


def photo_columns(labels: Iterable[str]) -> list[str]:
    """Return the names of a table's columns: those of :func:`photo_rows`."""
    return ["source", "faces", "face", *face_columns(labels)]


def photo_rows(photo: Photo) -> list[list[Any]]:
    """Return the faces of a photo as rows of a table; a photo without a face is a row that ends early."""
    which = [photo.source, len(photo.faces)]
    return [[*which, number, *face_cells(face)] for number, face in enumerate(photo.faces)] or [which]


def to_pandas(results: Iterable[Tabular | Unreadable]) -> DataFrame:
    """Return a table of photos, or of the frames of a clip, in the columns of the CSV.

    It has a row per face. A photo or a frame without one has a row whose columns of the face are empty; a
    photo that could not be read has none, as in the CSV.

    Args:
        results: Of one label set: photos, or frames.

    Raises:
        TaxonomyError: If there are results of several label sets, whose columns would be mixed up.
        FerkitError: If there are photos and frames.
        MissingDependencyError: If pandas is not installed; ferkit itself does not need it.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "to_pandas needs the library pandas, which ferkit does not bring; "
            "install it with `pip install pandas`"
        ) from error
    columns: list[str] = []
    rows: list[list[Any]] = []
    taxonomy = ""
    for result in results:
        if isinstance(result, Unreadable):
            continue
        names, some = result.table()
        if columns:
            _check_alike((taxonomy, columns), (result.taxonomy, names))
        taxonomy = result.taxonomy
        # A photo without a face that was put together by hand may not know the labels.
        columns = max(columns, names, key=len)
        rows += some
    return pd.DataFrame([row + [None] * (len(columns) - len(row)) for row in rows], columns=columns)


def _check_alike(one: tuple[str, list[str]], other: tuple[str, list[str]]) -> None:
    """Refuse results, given by their taxonomy and their columns, whose rows do not go below one another."""
    (labels, rest), (other_labels, other_rest) = (_apart(columns) for _, columns in (one, other))
    if one[0] != other[0] or (labels and other_labels and labels != other_labels):
        received = " and ".join(
            f"{taxonomy} ({', '.join(shown)})" if shown else taxonomy
            for taxonomy, shown in ((one[0], labels), (other[0], other_labels))
        )
        raise TaxonomyError(f"a table is of one label set; make one of each. Received: {received}")
    if rest != other_rest:
        raise FerkitError("a table is of photos or of frames; make one of each. Received: both")


def _apart(columns: list[str]) -> tuple[list[str], list[str]]:
    """Return the labels of a table with these columns, and the columns of other things."""
    labels = [name.removeprefix("p_") for name in columns if name.startswith("p_")]
    return labels, [name for name in columns if not name.startswith("p_")]
