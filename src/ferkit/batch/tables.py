"""The two tables of a batch: their schemas with units and versions, and results as rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from ferkit.recognize.results import LANDMARKS, Face, Photo, Unreadable, face_cells, face_columns

if TYPE_CHECKING:
    from ferkit.video.recognition import FrameResult

METADATA = b"ferkit"
"""Key of the schema's metadata: a JSON object with versions and settings."""

OK, NO_FACE, UNREADABLE = "ok", "no face", "unreadable"
"""The values of the column ``status``."""

Kept = tuple[Any, ...]
"""The values of the columns that are carried from the input, in the order of :attr:`Tables.keep`."""


class Chunk(NamedTuple):
    """Some rows of both tables."""

    faces: pa.Table
    photos: pa.Table


_SIDES = ("left", "top", "right", "bottom")
_QUALITY = ("size", "sharpness", "brightness", "yaw", "pitch", "roll", "outside")
_UNITS = {
    **dict.fromkeys((*_SIDES, "size", "width", "height", "x", "y", "box", "landmarks"), "px"),
    **{f"{name}_{axis}": "px" for name in LANDMARKS for axis in "xy"},
    **dict.fromkeys(("yaw", "pitch", "roll"), "degrees"),
    **dict.fromkeys(("time", "duration", "seconds"), "s"),
    **dict.fromkeys(("confidence", "probabilities", "raw_confidence"), "probability, 0..1"),
    **{"score": "0..1", "brightness": "gray, 0..255", "outside": "share, 0..1", "milliseconds": "ms"},
}


@dataclass(frozen=True, slots=True)
class Tables:
    """What the tables hold; equal for all of their parts."""

    labels: tuple[str, ...]  # the labels of the taxonomy, in order
    facts: Mapping[str, Any]  # versions and settings, for the metadata
    # Columns of the input that are carried into the output, with their types.
    keep: Mapping[str, pa.DataType] = field(default_factory=dict)
    flat: bool = False  # whether faces have flat columns, named as in the CSV of ``ferkit predict``
    clips: bool = False  # whether the inputs are clips; then a face is that of a frame, with its track
    faces: pa.Schema = field(init=False)  # schema of the table with a row per face
    photos: pa.Schema = field(init=False)  # schema of the table with a row per photo or clip

    def __post_init__(self) -> None:
        """Make the schemas."""
        frame = {"frame": pa.int64(), "time": pa.float64(), "duration": pa.float64()}
        tracked = {"track": pa.int32(), "detected": pa.bool_()}
        raw = {"raw_label": pa.string(), "raw_confidence": pa.float32()}
        length = {"frames": pa.int64(), "seconds": pa.float64()}
        faces = {
            **{"source": pa.string(), **(frame if self.clips else {}), "face": pa.int32()},
            **(tracked if self.clips else {}),
            **(_flat_types(self.labels) if self.flat else _nested_types(self.labels)),
            **(raw if self.clips else {}),
        }
        photos = {
            **{"source": pa.string(), "status": pa.string(), "faces": pa.int32()},
            **{"width": pa.int32(), "height": pa.int32(), **(length if self.clips else {})},
            **{"milliseconds": pa.float64(), "error": pa.string()},
        }
        taken = {*faces, *photos}
        metadata = {METADATA: json.dumps(self.facts, sort_keys=True, default=str).encode()}
        for name, (source, *own) in (("faces", tuple(faces.items())), ("photos", tuple(photos.items()))):
            kept = [(f"input_{column}" if column in taken else column, t) for column, t in self.keep.items()]
            fields = [_field(*column) for column in (source, *kept, *own)]
            object.__setattr__(self, name, pa.schema(fields, metadata=metadata))

    @property
    def kept(self) -> list[str]:
        """The names that the kept columns have in the output."""
        return list(self.photos.names[1 : 1 + len(self.keep)])

    def build(self, results: Iterable[tuple[Photo | Unreadable, Kept]]) -> Chunk:
        """Return the rows of photos, given with their kept values."""
        faces: list[dict[str, Any]] = []
        photos: list[dict[str, Any]] = []
        for result, values in results:
            common = self.common(result.source, values)
            row: dict[str, Any] = {"milliseconds": None if result.seconds is None else 1000 * result.seconds}
            if isinstance(result, Unreadable):
                row |= {"status": UNREADABLE, "error": str(result.error)}
            else:
                faces.extend(
                    {**common, "face": number, **self._face(face)} for number, face in enumerate(result.faces)
                )
                row |= {"status": OK if result.faces else NO_FACE, "faces": len(result.faces)}
                row |= {"width": result.width, "height": result.height}
            photos.append(common | row)
        return Chunk(
            pa.Table.from_pylist(faces, schema=self.faces), pa.Table.from_pylist(photos, schema=self.photos)
        )

    def common(self, source: str | None, kept: Kept) -> dict[str, Any]:
        """Return the columns that both tables have."""
        text = None if source is None else as_text(source)
        return {
            "source": text,
            **dict(zip(self.kept, map(_as_value, kept, self.keep.values()), strict=False)),
        }

    def frame_rows(self, frame: FrameResult) -> list[dict[str, Any]]:
        """Return the rows of a frame's faces, without the common columns."""
        return [
            {
                **{"frame": frame.index, "time": frame.time, "duration": frame.duration, "face": number},
                **{"track": tracked.track, "detected": tracked.detected, **self._face(tracked.face)},
                **{"raw_label": tracked.raw.label, "raw_confidence": tracked.raw.confidence},
            }
            for number, tracked in enumerate(frame.faces)
        ]

    def _face(self, face: Face) -> dict[str, Any]:
        if self.flat:
            return dict(zip(face_columns(self.labels), face_cells(face), strict=True))
        marks = face.landmarks
        return face.to_dict() | {
            "box": dict(zip(_SIDES, face.box, strict=True)),
            "landmarks": marks
            and {name: {"x": x, "y": y} for name, (x, y) in zip(LANDMARKS, marks, strict=True)},
        }


def as_text(source: str) -> str:
    r"""Return a name as valid Unicode; undecodable bytes of file names become escapes such as ``\udce9``."""
    return source.encode(errors="backslashreplace").decode()


def _as_value(value: Any, kind: pa.DataType) -> Any:
    """Return a kept value as its column's type; columns of several types are text."""
    return str(value) if value is not None and pa.types.is_string(kind) else value


def _field(name: str, kind: pa.DataType) -> pa.Field:
    unit = _UNITS.get("probabilities" if name.startswith("p_") else name)
    return pa.field(name, kind, metadata=None if unit is None else {"unit": unit})


def _struct(names: Sequence[str], kind: pa.DataType) -> pa.DataType:
    return pa.struct([_field(name, kind) for name in names])


def _flat_types(labels: tuple[str, ...]) -> dict[str, pa.DataType]:
    """Return the columns of a face, named as in the CSV."""
    short = {"score": pa.float32(), "confidence": pa.float32(), "label": pa.string(), "flags": pa.string()}
    short |= {f"p_{label}": pa.float32() for label in labels}
    return {name: short.get(name, pa.float64()) for name in face_columns(labels)}


def _nested_types(labels: tuple[str, ...]) -> dict[str, pa.DataType]:
    """Return the columns of a face, grouped as in the JSON."""
    quality = [
        *(_field(name, pa.float64()) for name in _QUALITY),
        _field("flags", pa.list_(pa.field("element", pa.string()))),
    ]
    return {
        **{"box": _struct(_SIDES, pa.float64()), "score": pa.float32()},
        "landmarks": _struct(LANDMARKS, _struct(("x", "y"), pa.float64())),
        **{"quality": pa.struct(quality), "label": pa.string(), "confidence": pa.float32()},
        "probabilities": _struct(labels, pa.float32()),
    }
