"""From the name of a source to a :class:`FaceDataset`, through the cache."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ferkit.data.cache import LAYOUT, DatasetCache, cache_root, digest_of
from ferkit.data.dataset import FaceDataset
from ferkit.data.ferplus import align_votes, read_votes
from ferkit.data.tables import read_face_table
from ferkit.errors import DataError
from ferkit.taxonomy import FER2013, Taxonomy


def fingerprint_of(
    images_digest: str,
    labels: NDArray[np.int64],
    split: NDArray[np.uint8],
    votes: NDArray[np.uint8] | None,
    taxonomy: Taxonomy,
) -> str:
    """Return the SHA-256 (hex) that stands for a data set's content, whatever file it came from."""
    parts = [
        images_digest,
        digest_of(labels),
        digest_of(split),
        "none" if votes is None else digest_of(votes),
        taxonomy.id,
        *taxonomy.labels,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def load_dataset(
    source: str | Path,
    *,
    votes: str | Path | None = None,
    cache: str | Path | Literal[False] | None = None,
    drop_leaks: bool = False,
    drop_flat: bool = False,
) -> FaceDataset:
    """Load labelled faces.

    Args:
        source: A csv in FER2013's layout, plain or packed.
        votes: FER+ votes (``fer2013new.csv``), joined by row.
        cache: A folder for decoded data; None for the user's own, False for none.
        drop_leaks: Leave out Training images that also stand in another split.
        drop_flat: Leave out images of one constant colour.

    Raises:
        DataError: If anything in it is wrong; the message names file and row.
    """
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    store = DatasetCache(None if cache is False else Path(cache) if cache is not None else cache_root())
    key = f"v{LAYOUT}-csv-{store.content_hash([path])[:40]}"
    entry = store.read(key)
    if entry is None:
        table = read_face_table(path)
        arrays: dict[str, NDArray[np.generic]] = {"images": table.images, "labels": table.labels}
        if table.split is not None:
            arrays["split"] = table.split
        store.write(key, arrays, {"source": path.name})
        entry = store.read(key)
        images, labels, split = table.images, table.labels, table.split
        digest = digest_of(images)
    if entry is not None:
        images = np.asarray(entry.arrays["images"], dtype=np.uint8)
        labels = np.array(entry.arrays["labels"], dtype=np.int64)
        split = np.array(entry.arrays["split"], dtype=np.uint8) if "split" in entry.arrays else None
        digest = str(entry.meta["digests"]["images"])  # type: ignore[index]
    if split is None:
        split = np.zeros(len(images), dtype=np.uint8)
    counted = None
    if votes is not None:
        counted = align_votes(read_votes(Path(votes)), labels, split, str(path))
    dataset = FaceDataset(
        images=images,
        labels=labels,
        split=split,
        taxonomy=FER2013,
        votes=counted,
        source=str(path),
        fingerprint=fingerprint_of(digest, labels, split, counted, FER2013),
    )
    keep = np.ones(len(dataset), dtype=bool)
    if drop_flat:
        keep &= ~flat_rows(dataset)
    if drop_leaks:
        keep &= ~leaking_rows(dataset)
    return dataset if bool(keep.all()) else dataset.select(keep)


def image_keys(dataset: FaceDataset) -> NDArray[np.int64]:
    """Number the distinct images: int64 ``[N]``, equal exactly where two images are equal in every pixel."""
    seen: dict[bytes, int] = {}
    flat = np.ascontiguousarray(dataset.images).reshape(len(dataset), -1)
    return np.array([seen.setdefault(row.tobytes(), len(seen)) for row in flat], dtype=np.int64)


def flat_rows(dataset: FaceDataset) -> NDArray[np.bool_]:
    """Mask ``[N]`` of images of one constant colour."""
    if not len(dataset):
        return np.zeros(0, dtype=bool)
    return np.asarray(dataset.images.min(axis=(1, 2)) == dataset.images.max(axis=(1, 2)))


def leaked_rows(dataset: FaceDataset) -> NDArray[np.bool_]:
    """Mask ``[N]`` of test images (PublicTest, PrivateTest) that also stand in Training, pixel for pixel."""
    keys = image_keys(dataset)
    training = dataset.split == 0
    return ~training & np.isin(keys, keys[training])


def leaking_rows(dataset: FaceDataset) -> NDArray[np.bool_]:
    """Mask ``[N]`` of Training images that also stand in a test split, pixel for pixel."""
    keys = image_keys(dataset)
    training = dataset.split == 0
    return training & np.isin(keys, keys[~training])
