"""``load_data``: from the name of a source to a :class:`FaceDataset`, through the cache."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError, escape_control
from ferkit.core.taxonomy import Taxonomy
from ferkit.data import cartoon
from ferkit.data.archives import KNOWN_TABLES, list_members, source_kind
from ferkit.data.cache import DatasetCache, cache_root, digest_of
from ferkit.data.dataset import PUBLIC_TEST, TRAINING, FaceDataset
from ferkit.data.duplicates import flat_rows, leaking_rows
from ferkit.data.ferplus import LabelSource, align_votes, read_votes, relabel
from ferkit.data.folders import CropFunction, is_picture, read_face_folder
from ferkit.data.labels import choose_taxonomy
from ferkit.data.npz import read_npz
from ferkit.data.parquet import read_parquet
from ferkit.data.tables import read_face_table

DEFAULT_SIZE = 48
"""Side in pixels that pictures are scaled to; FER2013's own."""

logger = logging.getLogger("ferkit.data")


@dataclass(frozen=True, slots=True)
class _Source:
    """A recognised source: its layout, its path, the files in it (none: the path itself) and its reader."""

    kind: str
    path: Path
    names: list[str]
    read: Callable[[], FaceDataset]


def load_data(
    source: str | Path,
    *,
    votes: str | Path | None = None,
    labels: LabelSource = "given",
    taxonomy: str | None = None,
    size: int = DEFAULT_SIZE,
    drop_leaks: bool = False,
    drop_flat: bool = False,
    crop: CropFunction | None = None,
    skip_unreadable: bool = False,
    cache: str | Path | Literal[False] | None = None,
    needed_by: str = "",
    heads: Collection[Taxonomy] = (),
    warn_hold_out: bool = True,
) -> FaceDataset:
    """Load labelled faces.

    The first load decodes a source and stores the result in a cache; later loads map it into memory, and
    images are then read-only. Where the source names no PublicTest, a tenth of each label's distinct Training
    images is held out as it (:mod:`ferkit.data.holdout`). Labels with the published names of FER2013, FER+,
    CK+, RAF-DB, AffectNet and others are converted to FER2013's or FER+'s (:mod:`ferkit.data.labels`). Such
    decisions, and files that are ignored, are warnings of the logger ``ferkit.data``.

    Args:
        source: A csv in FER2013's layout, plain or packed (.gz, .xz, .bz2, .zip, .tar, .tar.gz, .tar.xz); a
            Parquet file, or a folder of them; a folder of pictures in ``label/`` or ``train/label/``, or a
            zip or tar of one (:func:`ferkit.data.folders.plan_layout`); an .npz of ``ferkit data convert``;
            or ``cartoon``, ``cartoon:N``, ``cartoon:N:SEED`` for drawn faces.
        votes: FER+ votes (``fer2013new.csv``), joined by row; only for a table.
        labels: ``given`` keeps the source's labels; the others derive labels from the votes and leave out
            images without one (:func:`ferkit.data.ferplus.relabel`).
        taxonomy: The taxonomy to convert labels to, by their names: ``fer2013``, ``ferplus`` or ``own`` (just
            the labels that there are); ``raf-db`` or ``affectnet`` for the numbers of these datasets; None
            decides by the names. Only without votes.
        size: Side in pixels of faces that are drawn or come from pictures; others keep theirs.
        drop_leaks: Leave out Training images with a duplicate in another split.
        drop_flat: Leave out images of one constant colour.
        crop: For folders and archives of photos rather than faces: a function from RGB uint8 ``[H, W, 3]`` to
            the face uint8 ``[size, size]``, or None. Photos without a face are left out; nothing is cached.
        skip_unreadable: Leave out pictures that cannot be decoded, and name them in
            :attr:`FaceDataset.unreadable`; by default they are an error.
        cache: The folder of the cache; None for the user's own, False for none.
        needed_by: Name of a model that takes faces of ``size`` pixels only; others are an error.
        heads: Taxonomies of a network; labels that are one of them are not converted.
        warn_hold_out: Whether to warn of a PublicTest that was held out.

    Raises:
        DataError: If the source cannot be read or holds invalid values; the message names file and row.
        TaxonomyError: If there is no such ``taxonomy``.
        MissingDependencyError: If the source is a Parquet file and PyArrow is not installed.

    Example:
        >>> data = load_data("cartoon:70", cache=False)
        >>> data.images.shape, data.taxonomy.labels[int(data.labels[0])] in data.taxonomy.labels
        ((70, 48, 48), True)
    """
    found = _recognise(source, size, crop, skip_unreadable)
    store = DatasetCache(
        None if cache is False or crop is not None else cache_root() if cache is None else Path(cache)
    )
    dataset, images_digest = _read(store, found)
    dataset = replace(dataset, source=str(source))
    if crop is not None and (found.kind in ("csv", "npz") or dataset.in_rows or dataset.votes is not None):
        raise DataError(f"{source}: holds faces; photos come from a folder, a .zip or a tar of pictures")
    if needed_by and dataset.size != size:
        raise DataError(
            f"{source}: its faces are {dataset.size} pixels wide, and {needed_by} takes {size}. Tables keep "
            "their size; name the folder of pictures, which are scaled, or convert it: "
            f"ferkit data convert PICTURES FACES.npz --size {size}"
        )
    if votes is not None:
        dataset = _join_votes(dataset, Path(votes))
    if taxonomy is not None and dataset.votes is not None:
        raise DataError(
            f"{source}: FER+ votes belong to FER2013's labels; choose a taxonomy without votes only"
        )
    dataset = choose_taxonomy(dataset, taxonomy, by_name=found.kind != "npz", heads=heads)
    dataset = replace(dataset, fingerprint=fingerprint_of(dataset, images_digest))
    held_out = describe_hold_out(dataset) if warn_hold_out else ""
    for note in (*dataset.notes, held_out):
        if note:
            logger.warning("%s: %s", escape_control(str(source)), escape_control(note))
    return relabel(select_faces(dataset, drop_leaks=drop_leaks, drop_flat=drop_flat), labels)


def check_source(source: str | Path) -> None:
    """Raise a DataError if there is no such source; this takes no time, unlike reading it.

    Raises:
        DataError: If there is no such file or folder, or the number of drawn faces is invalid.
    """
    drawn = isinstance(source, str) and cartoon.parse_cartoon(source) is not None
    if not drawn and not os.path.exists(source):  # noqa: PTH110  # Path.exists raises for names that are too long
        raise DataError(f"{source}: there is no such file or folder (cartoon:N stands for N drawn faces)")


def make_dataset(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    split: NDArray[np.uint8],
    taxonomy: Taxonomy,
    votes: NDArray[np.uint8] | None = None,
    *,
    source: str,
) -> FaceDataset:
    """Make a dataset of arrays in memory, with its fingerprint.

    The arrays are those of :class:`FaceDataset`.

    Raises:
        DataError: If shapes, dtypes or codes do not match.
    """
    dataset = FaceDataset(images, labels, split, taxonomy, votes, source)
    return replace(dataset, fingerprint=fingerprint_of(dataset, digest_of(images)))


def fingerprint_of(dataset: FaceDataset, images_digest: str, *, votes: bool = True) -> str:
    """Return the SHA-256 (hex) of a dataset's content, whatever file it comes from.

    ``images_digest`` is :func:`ferkit.data.cache.digest_of` its images, which the cache stores.
    """
    parts = [
        images_digest,
        digest_of(dataset.labels),
        digest_of(dataset.split),
        "none" if dataset.votes is None or not votes else digest_of(dataset.votes),
        dataset.taxonomy.id,
        *dataset.taxonomy.labels,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def faces_digest(dataset: FaceDataset) -> str:
    """Return the fingerprint without votes: the same for the same faces, labels and splits."""
    return fingerprint_of(dataset, digest_of(dataset.images), votes=False)


def describe_hold_out(dataset: FaceDataset) -> str:
    """Return one sentence about a PublicTest that was held out; empty if the source names it."""
    if dataset.split_named:
        return ""
    held, training = (int((dataset.split == code).sum()) for code in (PUBLIC_TEST, TRAINING))
    return f"no PublicTest is named; {held} of {training + held} Training faces are held out as it"


def select_faces(dataset: FaceDataset, *, drop_leaks: bool = False, drop_flat: bool = False) -> FaceDataset:
    """Leave out Training images with a duplicate in another split, and images of one constant colour."""
    keep = np.ones(len(dataset), dtype=bool)
    if drop_flat:
        keep &= ~flat_rows(dataset)
    if drop_leaks:
        keep &= ~leaking_rows(dataset)
    return dataset if bool(keep.all()) else dataset.select(keep)


def _join_votes(dataset: FaceDataset, votes: Path) -> FaceDataset:
    """Join FER+ votes by row; they also name the splits of a table that does not."""
    if not dataset.in_rows:
        raise DataError(
            f"votes are joined by row, and {dataset.source} has no rows in FER2013's order; use fer2013.csv"
        )
    table = read_votes(votes)
    if not dataset.split_named and len(table.votes) == len(dataset):
        dataset = replace(dataset, split=table.split, split_named=True)
    # What was held out of Training is Training in the votes.
    held_out = (dataset.split == PUBLIC_TEST) & (not dataset.split_named)
    counts = align_votes(table, dataset.labels, np.where(held_out, TRAINING, dataset.split), dataset.source)
    return replace(dataset, votes=counts)


def _read(store: DatasetCache, source: _Source) -> tuple[FaceDataset, str]:
    """Read a source from the cache, or decode and store it; return it with the digest of its images.

    Files that change while they are read are not stored, since their content may be mixed; nor is a dataset
    that lacks pictures.
    """
    key = store.key(source.kind, source.path, source.names)
    if (entry := store.read(key)) is not None:
        return entry
    dataset = source.read()
    if store.key(source.kind, source.path, source.names) != key:
        logger.warning("%s changed while it was read; load it again once it is complete", source.path)
    elif not dataset.unreadable:
        store.write(key, dataset)
    return store.read(key) or (dataset, digest_of(dataset.images))


def _recognise(source: str | Path, size: int, crop: CropFunction | None, skip_unreadable: bool) -> _Source:
    """Find the reader of a source by its content.

    Raises:
        DataError: If there is no such file, or no reader for it.
    """
    if not 8 <= size <= 512:
        raise DataError(f"faces must be 8 to 512 pixels wide. Received: {size}")
    check_source(source)
    drawn = cartoon.parse_cartoon(source) if isinstance(source, str) else None
    if drawn is not None:
        import cv2

        # The drawing depends on this module and on the version of OpenCV.
        kind = f"cartoon{drawn}-{size}-cv{cv2.__version__}"
        return _Source(kind, Path(cartoon.__file__), [], lambda: cartoon.draw_faces(*drawn, size))
    path = Path(source)
    kind = source_kind(path)
    names = list_members(path) if kind == "folder" else []
    if names and not any(map(is_picture, names)):
        parquet = [name for name in names if name.lower().endswith(".parquet")]
        tables = [name for name in names if ".csv" in Path(name).suffixes]
        if parquet:
            kind, names = "parquet", parquet
        elif tables:
            raise DataError(f"{path}: a folder without pictures; name the table, such as {path / tables[0]}")

    def read() -> FaceDataset:
        if kind == "npz":
            return read_npz(path)
        if kind == "parquet":
            return read_parquet(path, names, size, skip_unreadable=skip_unreadable)
        if kind == "folder" or (kind in ("zip", "tar") and _holds_pictures(path)):
            return read_face_folder(path, size, crop=crop, skip_unreadable=skip_unreadable)
        return read_face_table(path)

    return _Source(kind if kind in ("csv", "npz") else f"{kind}{size}", path, names, read)


def _holds_pictures(path: Path) -> bool:
    """Return whether an archive holds pictures, and no csv with a name of FER2013."""
    names = list_members(path)
    tables = any(Path(name).name.lower() in KNOWN_TABLES for name in names)
    return not tables and any(is_picture(name) for name in names)
