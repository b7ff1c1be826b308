"""The reader of Parquet files, as exported by Hugging Face datasets or pandas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.crops import fit_crop
from ferkit.core.errors import DataError, ImageError
from ferkit.core.extras import require
from ferkit.core.images import load_image, to_gray
from ferkit.core.taxonomy import FER2013
from ferkit.data.archives import MAX_TOTAL_BYTES
from ferkit.data.dataset import TRAINING, FaceDataset
from ferkit.data.folders import SPLIT_FOLDERS, raise_unreadable, taxonomy_of_names
from ferkit.data.holdout import name_splits
from ferkit.data.labels import label_column
from ferkit.data.tables import parse_pixels, pixel_error, split_column, square_side

_BATCH_ROWS = 256
_FACES = ("image", "img", "img_bytes", "image_bytes", "pixels")
_LABELS = ("label", "labels", "emotion")


def read_parquet(
    path: Path, names: Sequence[str] = (), size: int = 48, *, skip_unreadable: bool = False
) -> FaceDataset:
    """Read labelled faces from one or more Parquet files.

    Columns: the face as ``image`` (also ``img``, ``img_bytes``: an encoded picture, or a struct with its
    ``bytes``) or ``pixels`` (S*S numbers, as text or a list); the label as ``label`` or ``emotion`` (name or
    number); optionally ``Usage`` (the split). Without Usage, file names that begin with train, test or
    validation give the split. Numbers are named by the metadata of Hugging Face; without it they are in
    FER2013's order.

    Args:
        path: A file, or the folder that the names are relative to.
        names: The files; empty where ``path`` is the file itself.
        size: Side in pixels that encoded pictures are scaled to.
        skip_unreadable: Leave out pictures that cannot be decoded, and name them in ``unreadable``.

    Raises:
        DataError: If a file is damaged, or a column or value is invalid; the message names file and row.
        MissingDependencyError: If PyArrow is not installed.
    """
    images: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    splits: list[int] = []
    unreadable: dict[str, ImageError] = {}
    classes: list[str] = []
    numbered = False
    for file in [path / name for name in names] or [path]:
        split = SPLIT_FOLDERS.get(re.split(r"[-_.]", file.name.lower())[0], TRAINING)
        for row, (face, label, usage) in enumerate(_rows_of(file, classes), 1):
            place = f"{file}, row {row}"
            try:
                image = _decode_face(face, size, place)
            except ImageError as error:
                unreadable[f"{file.name} row {row}"] = error
                continue
            if images and image.shape != images[0].shape:
                raise DataError(f"{place}: {image.size} pixels; {images[0].size} were expected")
            images.append(image)
            splits.append(split if usage is None else split_column(str(usage).encode(), place))
            if label is None or (classes and isinstance(label, int) and not 0 <= label < len(classes)):
                raise DataError(
                    f"{place}: unknown label {label}; {len(classes)} classes are named in the file"
                )
            if not isinstance(label, int):
                labels.append(str(label))
            elif classes:
                labels.append(classes[label])
            else:
                numbered = True
                labels.append(FER2013.labels[label_column(str(label), FER2013, place)])
    raise_unreadable(path, unreadable, len(images) + len(unreadable), skip=skip_unreadable)
    if not images:
        raise DataError(f"{path}: holds no face")
    taxonomy, column = FER2013, {name: k for k, name in enumerate(FER2013.labels)}
    if not numbered:
        taxonomy, column = taxonomy_of_names(str(path), classes or labels)
    faces, columns = np.stack(images), np.array([column[name] for name in labels], np.int64)
    split_codes, named = name_splits(faces, columns, np.array(splits, np.uint8))
    return FaceDataset(
        faces,
        columns,
        split_codes,
        taxonomy,
        split_named=named,
        in_rows=True,
        unreadable=tuple(unreadable),
    )


def _rows_of(file: Path, classes: list[str]) -> Iterator[tuple[Any, Any, Any]]:
    """Yield face, label and Usage (or None) of each row; append the names of label numbers to ``classes``."""
    arrow, parquet = require("pyarrow", "batch"), require("pyarrow.parquet", "batch")
    try:
        with parquet.ParquetFile(file) as table:
            columns = {name.lower(): name for name in table.schema_arrow.names}
            face = next((columns[name] for name in _FACES if name in columns), None)
            label = next((columns[name] for name in _LABELS if name in columns), None)
            if face is None or label is None:
                raise DataError(
                    f"{file}: no column {'label or emotion' if face else 'image or pixels'}. "
                    f"Received: {', '.join(columns)}"
                )
            groups = [table.metadata.row_group(k).total_byte_size for k in range(table.num_row_groups)]
            if sum(groups) > MAX_TOTAL_BYTES:
                raise DataError(f"{file}: unpacks to more than {MAX_TOTAL_BYTES >> 30} GiB")
            about = json.loads((table.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
            names = about.get("info", {}).get("features", {}).get(label, {}).get("names", [])
            if classes and names != classes:
                raise DataError(f"{file}: its label names {names} differ from {classes} of another file")
            classes[:] = names
            wanted = [face, label, *([columns["usage"]] if "usage" in columns else [])]
            for batch in table.iter_batches(_BATCH_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    yield row[face], row[label], row.get(columns.get("usage"))
    except (OSError, ValueError, AttributeError, arrow.ArrowException) as error:
        raise DataError(f"{file}: the file is damaged ({error}); fetch or copy it again") from error


def _decode_face(value: Any, size: int, place: str) -> NDArray[np.uint8]:
    """Return uint8 ``[S, S]`` of an encoded picture (then S is ``size``) or of numbers as text or a list."""
    value = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(value, bytes):
        return fit_crop(to_gray(load_image(value)), size)
    if not isinstance(value, (str, list)):
        raise DataError(f"{place}: no picture; encoded bytes, or pixels as text or a list were expected")
    text = value if isinstance(value, str) else " ".join(map(str, value))
    count = len(text.split())
    side = square_side(count, place)
    pixels = parse_pixels(text, count)
    if pixels is None:
        raise DataError(f"{place}: {pixel_error(text, count)}")
    return pixels.reshape(side, side)
