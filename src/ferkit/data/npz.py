"""Datasets as .npz files: NumPy arrays, no pickles."""

from __future__ import annotations

import tokenize
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError, TaxonomyError
from ferkit.core.files import replacing
from ferkit.core.taxonomy import Taxonomy
from ferkit.data.archives import MAX_TABLE_BYTES, data_errors
from ferkit.data.dataset import FaceDataset

_DTYPES = {"images": "u1", "labels": "i8", "split": "u1", "taxonomy": "U", "votes": "u1", "split_named": "?"}
_OPTIONAL = ("votes", "split_named")


def write_npz(dataset: FaceDataset, path: Path) -> None:
    """Write ``images``, ``labels``, ``split``, ``taxonomy`` (id, then labels), ``split_named`` and ``votes``.

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
    """Read a file with the arrays of :func:`write_npz`; ``votes`` and ``split_named`` (True) are optional.

    Raises:
        DataError: If the file is damaged, or an array is missing or invalid.
    """
    with data_errors(path), zipfile.ZipFile(path) as archive:
        if sum(info.file_size for info in archive.infolist()) > MAX_TABLE_BYTES:
            raise DataError(f"{path}: unpacks to more than {MAX_TABLE_BYTES >> 30} GiB, the limit of a table")
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in _DTYPES if name in stored}
        except (ValueError, SyntaxError, tokenize.TokenError) as error:  # NumPy parses headers as Python
            raise DataError(f"{path}: an array is damaged or of an unknown kind ({error})") from error
    for name, dtype in _DTYPES.items():
        if name not in arrays and name not in _OPTIONAL:
            needed = ", ".join(name for name in _DTYPES if name not in _OPTIONAL)
            raise DataError(
                f"{path}: no array {name!r}; {needed} were expected. Received: {', '.join(arrays)}"
            )
        if name in arrays and name != "taxonomy" and arrays[name].dtype != np.dtype(dtype):
            raise DataError(f"{path}: {name} must be {np.dtype(dtype)}. Received: {arrays[name].dtype}")
    taxonomy_id, *labels = map(str, [*np.atleast_1d(arrays.pop("taxonomy")), ""])
    named = bool(np.all(arrays.pop("split_named", True)))
    try:
        taxonomy = Taxonomy(taxonomy_id, tuple(labels[:-1]))
        return FaceDataset(**arrays, taxonomy=taxonomy, source=str(path), split_named=named)
    except (TaxonomyError, DataError) as error:
        raise DataError(f"{path}: {error}") from error
