"""Data sets in one .npz file: NumPy arrays, no pickles."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError, TaxonomyError
from ferkit.core.files import replacing
from ferkit.core.taxonomy import Taxonomy
from ferkit.data.archives import MAX_TABLE_BYTES, explained
from ferkit.data.dataset import FaceDataset

_NEEDED = ("images", "labels", "split", "taxonomy")
_OPTIONAL = ("votes", "split_named")


def write_npz(dataset: FaceDataset, path: Path) -> None:
    """Write ``images``, ``labels``, ``split``, ``taxonomy`` (its id, then the labels) and, if any, ``votes``.

    Beside them stands ``split_named``: whether somebody named the splits, or PublicTest was held out.

    Raises:
        OutputError: If the file cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {
        "images": dataset.images,
        "labels": dataset.labels,
        "split": dataset.split,
        "taxonomy": np.array([dataset.taxonomy.id, *dataset.taxonomy.labels]),
        "split_named": np.array(dataset.split_named),
    }
    if dataset.votes is not None:
        arrays["votes"] = dataset.votes
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def read_npz(path: Path) -> FaceDataset:
    """Read what :func:`write_npz` wrote; a file that does not tell has its splits from somebody.

    Returns:
        All but the fingerprint, which is empty.

    Raises:
        DataError: If the file is damaged, or an array is missing or of the wrong type.
    """
    with explained(path):
        with zipfile.ZipFile(path) as zipped:
            if sum(info.file_size for info in zipped.infolist()) > MAX_TABLE_BYTES:
                raise DataError(
                    f"{path}: says it unpacks to more than {MAX_TABLE_BYTES >> 30} GiB; too large"
                )
        try:
            with np.load(path, allow_pickle=False) as stored:
                missing = [name for name in _NEEDED if name not in stored]
                if missing:
                    raise DataError(
                        f"{path}: no array {missing[0]!r}; {', '.join(_NEEDED)} were expected. "
                        f"Received: {', '.join(stored) or 'nothing'}"
                    )
                arrays = {name: stored[name] for name in (*_NEEDED, *_OPTIONAL) if name in stored}
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
    kinds = {"images": "u1", "labels": "i8", "split": "u1", "votes": "u1", "split_named": "?"}
    for name, kind in kinds.items():
        if name in arrays and arrays[name].dtype != np.dtype(kind):
            raise DataError(f"{path}: {name} must be {np.dtype(kind)}. Received: {arrays[name].dtype}")
    names = [str(name) for name in np.atleast_1d(arrays["taxonomy"])]
    try:
        taxonomy = Taxonomy(names[0] if names else "", tuple(names[1:]))
        return FaceDataset(
            arrays["images"],
            arrays["labels"],
            arrays["split"],
            taxonomy,
            arrays.get("votes"),
            str(path),
            "",
            bool(np.all(arrays.get("split_named", True))),
        )
    except (TaxonomyError, DataError) as error:
        raise DataError(f"{path}: {error}") from error
