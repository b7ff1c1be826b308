"""From the name of a source to a :class:`FaceDataset`, through the cache."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError
from ferkit.core.taxonomy import FER2013, Taxonomy
from ferkit.data import cartoon
from ferkit.data.archives import KNOWN_TABLES, explained, is_tar, is_zip, list_members
from ferkit.data.cache import LAYOUT, DatasetCache, cache_root, digest_of
from ferkit.data.dataset import SPLITS, FaceDataset
from ferkit.data.duplicates import flat_rows, leaking_rows
from ferkit.data.ferplus import LabelSource, align_votes, read_votes, relabel
from ferkit.data.folders import (
    describe_passed_over,
    find_passed_over,
    is_picture,
    plan_layout,
    read_face_folder,
)
from ferkit.data.holdout import hold_out
from ferkit.data.labelset import fit_labels
from ferkit.data.npz import read_npz
from ferkit.data.tables import read_face_table

DEFAULT_SIZE = 48
"""Side in pixels that pictures in folders are brought to; FER2013's own."""

logger = logging.getLogger("ferkit.data")


@dataclass(frozen=True, slots=True)
class _Decoded:
    """What a reader makes of a source.

    ``split_told`` is False where the split was worked out here; ``in_rows`` is True where the faces are in
    the order of FER2013's rows, which FER+ votes need; ``passed_over`` counts files that are no pictures.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    split: NDArray[np.uint8]
    taxonomy: Taxonomy
    votes: NDArray[np.uint8] | None = None
    split_told: bool = True
    in_rows: bool = False
    passed_over: Mapping[str, int] = field(default_factory=dict)

    def pack(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return arrays and remarks for the cache."""
        arrays: dict[str, NDArray[Any]] = {
            "images": self.images, "labels": self.labels, "split": self.split,
        }  # fmt: skip
        if self.votes is not None:
            arrays["votes"] = self.votes
        names = [self.taxonomy.id, *self.taxonomy.labels]
        told = {"split_told": self.split_told, "in_rows": self.in_rows, "passed_over": dict(self.passed_over)}
        return arrays, {"taxonomy": names, **told}

    @classmethod
    def unpack(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> _Decoded:
        """Undo :meth:`pack`."""
        name, *labels = meta["taxonomy"]
        taxonomy = Taxonomy(name, tuple(labels))
        told = {key: meta[key] for key in ("split_told", "in_rows", "passed_over")}
        fields: dict[str, Any] = {**arrays, **told}
        return cls(**fields, taxonomy=taxonomy)


@dataclass(frozen=True, slots=True)
class _Source:
    """A source that was recognised: how it is read, and the files it consists of (none: ``root`` itself).

    ``passed_over`` counts a folder's other files, which are no part of what the cache goes by.
    """

    kind: str
    root: Path
    names: Sequence[str]
    read: Callable[[], _Decoded]
    passed_over: Mapping[str, int] | None = None


def load_dataset(
    source: str | Path,
    *,
    votes: str | Path | None = None,
    cache: str | Path | Literal[False] | None = None,
    drop_leaks: bool = False,
    drop_flat: bool = False,
    labels: LabelSource = "given",
    taxonomy: str | None = None,
    size: int = DEFAULT_SIZE,
    needed_by: str = "",
    heads: Collection[Taxonomy] = (),
    tell_held_out: bool = True,
) -> FaceDataset:
    """Load labelled faces.

    The first load of a source decodes it and keeps the result in a cache; later loads map it into memory
    (images are then read-only). Where the source names no splits, a tenth of each label's distinct images
    becomes PublicTest, chosen by content (:func:`ferkit.data.holdout.hold_out`). Folders that lack one or two
    of FER2013's or FER+'s labels, and have no others, are in that taxonomy. Each of these, and files in a
    folder or an archive that are no pictures, is said in a warning (logger ``ferkit.data``).

    Args:
        source: A csv in FER2013's layout, plain or as .gz, .xz, .zip, .tar, .tar.gz or .tar.xz; a folder of
            pictures laid out as ``label/*.png`` or ``train/label/*.png``, or a zip or tar of one
            (:func:`ferkit.data.folders.plan_layout`); an .npz that ``ferkit data convert`` wrote; or
            ``cartoon``, ``cartoon:N``, ``cartoon:N:SEED`` for faces drawn by the program.
        votes: FER+ votes (``fer2013new.csv``), joined by row; only for a csv.
        cache: A folder for decoded data; None for the user's own, False for none.
        drop_leaks: Leave out Training images that also stand in another split, pixel for pixel.
        drop_flat: Leave out images of one constant colour.
        labels: ``given`` keeps the source's labels; the others take them from the votes instead and leave out
            images without one (:func:`ferkit.data.ferplus.relabel`).
        taxonomy: The label set that the labels are of, by their names: ``fer2013``, ``ferplus``, or ``own``
            for just the names that there are; None as the source has it. Only without votes.
        size: Side in pixels of faces that are drawn or come from picture files; others have their own.
        needed_by: What takes faces of just ``size`` pixels (a model's name), so that others are refused.
        heads: The label sets of the network that the faces are for: a folder's names that are one of them,
            ``own``, stay it, though they are most of FER2013's or FER+'s.
        tell_held_out: Whether to warn where PublicTest is held out, which who takes all faces need not know.

    Raises:
        DataError: If anything in it is wrong; the message names file and row.
        TaxonomyError: If there is no such ``taxonomy``.
    """
    store = DatasetCache(None if cache is False else cache_root() if cache is None else Path(cache))
    recognised = _recognise(source, size)
    decoded, images_digest = _read(store, recognised)
    if needed_by and decoded.images.shape[1] != size:
        raise DataError(
            f"{source}: its faces are {decoded.images.shape[1]} pixels wide, and {needed_by} takes {size}. A "
            "csv and an .npz keep their size; name the folder of pictures, which is brought to it, or make "
            f"an .npz of that: ferkit data convert PICTURES FACES.npz --size {size}"
        )
    if votes is not None and not decoded.in_rows:
        raise DataError(
            f"votes are joined by row, and {source} has no rows in FER2013's order; use them with fer2013.csv"
        )
    split, counts, named = decoded.split, decoded.votes, decoded.split_told
    if votes is not None:
        table = read_votes(Path(votes))
        counts = align_votes(table, decoded.labels, split if decoded.split_told else None, str(source))
        if not named:
            split, named = table.split, True
    if taxonomy is not None and counts is not None:
        raise DataError(
            f"{source}: FER+ votes go with FER2013's labels; a taxonomy is chosen for faces without votes"
        )
    # An .npz tells its taxonomy; what lies in folders has none but their names.
    columns, label_set, lacking = fit_labels(
        str(source), decoded.labels, decoded.taxonomy, taxonomy, by_name=recognised.kind != "npz", heads=heads
    )
    dataset = FaceDataset(
        images=decoded.images,
        labels=columns,
        split=split,
        taxonomy=label_set,
        votes=counts,
        source=str(source),
        fingerprint=fingerprint_of(images_digest, columns, split, counts, label_set),
        split_named=named,
    )
    passed_over = decoded.passed_over if recognised.passed_over is None else recognised.passed_over
    held_out = describe_held_out(dataset) if tell_held_out else ""
    for words in (describe_passed_over(str(source), passed_over), lacking, held_out):
        if words:
            logger.warning("%s", words)
    return relabel(select_faces(dataset, drop_leaks=drop_leaks, drop_flat=drop_flat), labels)


def make_dataset(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    split: NDArray[np.uint8],
    taxonomy: Taxonomy,
    votes: NDArray[np.uint8] | None = None,
    *,
    source: str,
    split_named: bool = True,
) -> FaceDataset:
    """Make a data set of arrays in memory, with its fingerprint.

    Args:
        images: uint8 ``[N, S, S]``.
        labels: int64 ``[N]``, columns of ``taxonomy``.
        split: uint8 ``[N]``, positions in ``SPLITS``.
        taxonomy: The labels' names and order.
        votes: uint8 ``[N, 10]`` or None.
        source: What to call it.
        split_named: Whether somebody named the splits; False where a part of Training was held out.

    Raises:
        DataError: If the arrays do not fit together.
    """
    fingerprint = fingerprint_of(digest_of(images), labels, split, votes, taxonomy)
    return FaceDataset(images, labels, split, taxonomy, votes, source, fingerprint, split_named)


def describe_held_out(dataset: FaceDataset) -> str:
    """Return the remark about a PublicTest that nobody named; empty where somebody did."""
    if dataset.split_named:
        return ""
    training, held = (int((dataset.split == SPLITS.index(name)).sum()) for name in ("Training", "PublicTest"))
    whole = f"{training + held} training faces"
    return f"{dataset.source}: no PublicTest is named: {held} of {whole} are held out as it"


def faces_digest(dataset: FaceDataset) -> str:
    """Return the fingerprint that the data would have without votes: the same faces, labels and splits."""
    images = digest_of(dataset.images)
    return fingerprint_of(images, dataset.labels, dataset.split, None, dataset.taxonomy)


def fingerprint_of(
    images_digest: str,
    labels: NDArray[np.int64],
    split: NDArray[np.uint8],
    votes: NDArray[np.uint8] | None,
    taxonomy: Taxonomy,
) -> str:
    """Return the SHA-256 (hex) that stands for a data set's content, whatever file it came from.

    It is taken over the digests of the arrays, so that the images' digest, which the cache keeps, need not be
    computed at each load.
    """
    parts = [
        images_digest,
        digest_of(labels),
        digest_of(split),
        "none" if votes is None else digest_of(votes),
        taxonomy.id,
        *taxonomy.labels,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def select_faces(dataset: FaceDataset, *, drop_leaks: bool = False, drop_flat: bool = False) -> FaceDataset:
    """Leave out Training images that also stand in another split, and images of one constant colour."""
    keep = np.ones(len(dataset), dtype=bool)
    if drop_flat:
        keep &= ~flat_rows(dataset)
    if drop_leaks:
        keep &= ~leaking_rows(dataset)
    return dataset if bool(keep.all()) else dataset.select(keep)


def _read(store: DatasetCache, source: _Source) -> tuple[_Decoded, str]:
    """Take a source from the cache, or decode it and keep it; return it with the digest of its images.

    Nothing is kept of files that change meanwhile: their old digest would stand for the new content, or a
    mixture of both for either.
    """
    with explained(source.root):
        note = store.note(source.root, source.names)
        content = store.content_hash(source.root, source.names, note)
    key = f"v{LAYOUT}-{source.kind}-{content[:40]}"
    entry = store.read(key)
    if entry is None:
        decoded = source.read()
        if _changed(store, source, note):
            logger.warning("%s changed while it was read; load it again once it is complete", source.root)
            return decoded, digest_of(decoded.images)
        store.write(key, *decoded.pack())
        entry = store.read(key)
        if entry is None:
            return decoded, digest_of(decoded.images)
    if not _changed(store, source, note):
        store.remember(note, content)
    return _Decoded.unpack(entry.arrays, entry.meta), entry.digests["images"]


def _changed(store: DatasetCache, source: _Source, note: Path | None) -> bool:
    """Tell whether a source's files are others than when ``note`` was taken."""
    try:
        return store.note(source.root, source.names) != note
    except OSError:
        return True


def _recognise(source: str | Path, size: int) -> _Source:
    """Tell what a source is.

    Raises:
        DataError: If there is no such file, or it is of no kind that can be read.
    """
    if not 8 <= size <= 512:
        raise DataError(f"faces are 8 to 512 pixels wide. Received: {size}")
    drawn = cartoon.parse_cartoon(source) if isinstance(source, str) else None
    if drawn is not None:
        import cv2

        count, seed = drawn
        # what draws is part of the content: this module and the version of OpenCV
        return _Source(
            f"cartoon{count}-{seed}-{size}-cv{cv2.__version__}",
            Path(cartoon.__file__),
            [],
            lambda: _draw(count, seed, size),
        )
    path = Path(source)
    if path.is_dir():
        names = list_members(path)
        pictures = [name for name in names if is_picture(name)]
        if not pictures:
            _refuse_tables(path, names)
            plan_layout(str(path), names)
        passed_over = find_passed_over(str(path), names)
        return _Source(f"folder{size}", path, pictures, lambda: _from_folder(path, size), passed_over)
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file or folder (for faces drawn by the program, say cartoon)"
        )
    if is_zip(path) or is_tar(path):
        return _Source(f"packed{size}", path, [], lambda: _from_archive(path, size))
    if path.suffix.lower() == ".npz":
        return _Source("npz", path, [], lambda: _from_npz(path))
    return _Source("csv", path, [], lambda: _from_table(path))


def _from_archive(path: Path, size: int) -> _Decoded:
    """Read an archive, be it of a table or of pictures."""
    return _from_folder(path, size) if _holds_pictures(path) else _from_table(path)


def _holds_pictures(path: Path) -> bool:
    """Tell whether an archive is one of pictures: it holds some, and no table of FER2013's own names."""
    names = list_members(path)
    tables = any(Path(name).name.lower() in KNOWN_TABLES for name in names)
    return not tables and any(is_picture(name) for name in names)


def _refuse_tables(path: Path, names: Sequence[str]) -> None:
    """Say what to do where somebody names the folder in which the table lies."""
    tables = [name for name in names if ".csv" in Path(name).suffixes]
    if tables:
        raise DataError(
            f"{path}: is a folder without pictures; name the table itself, such as {path / tables[0]}"
        )


def _draw(count: int, seed: int, size: int) -> _Decoded:
    """Draw faces."""
    faces = cartoon.draw_faces(count, seed, size)
    return _Decoded(faces.images, faces.labels, faces.split, FER2013, faces.votes)


def _from_folder(path: Path, size: int) -> _Decoded:
    """Read folders of pictures."""
    faces = read_face_folder(path, size)
    return _Decoded(
        faces.images,
        faces.labels,
        faces.split,
        faces.taxonomy,
        split_told=faces.split_named,
        passed_over=faces.passed_over,
    )


def _from_npz(path: Path) -> _Decoded:
    """Read what ``ferkit data convert`` kept."""
    kept = read_npz(path)
    return _Decoded(
        kept.images, kept.labels, kept.split, kept.taxonomy, kept.votes, split_told=kept.split_named
    )


def _from_table(path: Path) -> _Decoded:
    """Read a csv of faces."""
    table = read_face_table(path)
    told = table.split is not None
    split = hold_out(table.images, table.labels) if table.split is None else table.split
    return _Decoded(table.images, table.labels, split, FER2013, split_told=told, in_rows=True)
