"""Writing data sets: FER2013's csv, folders of pictures, one .npz; each appears whole or not at all."""

from __future__ import annotations

import gzip
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Literal, get_args

import cv2
import numpy as np

from ferkit.core.errors import DataError, OutputError
from ferkit.core.files import replacing
from ferkit.core.taxonomy import FER2013
from ferkit.data.dataset import SPLITS, VOTE_COLUMNS, FaceDataset
from ferkit.data.npz import write_npz

Format = Literal["csv", "folder", "npz"]

_CSV_SUFFIXES = (".csv", ".csv.gz")
_SPLIT_FOLDERS = ("train", "test", "test")
"""Kaggle's folders: ``test`` holds PublicTest and PrivateTest, told apart by the files' names."""


def format_of(path: Path) -> Format:
    """Tell by its name what is to be written: ``.csv``, ``.csv.gz``, ``.npz``, or else a folder."""
    name = path.name.lower()
    if name.endswith(_CSV_SUFFIXES):
        return "csv"
    return "npz" if name.endswith(".npz") else "folder"


def write_dataset(
    dataset: FaceDataset, path: Path, *, kind: Format | None = None, overwrite: bool = False
) -> None:
    """Write a data set.

    ``csv`` is FER2013's layout (``emotion,pixels,Usage``) and takes FER2013 labels only; ``folder`` is
    Kaggle's (``train/happy/Training_00000042.png``, ``test/happy/PublicTest_00028709.png``); ``npz`` keeps
    everything, votes included.

    Args:
        dataset: What to write.
        path: Where to; a ``.csv.gz`` is packed.
        kind: Layout; None tells it by the name.
        overwrite: Replace a file that is there. A folder that is there and not empty is never replaced.

    Raises:
        DataError: If the layout cannot hold the data set.
        OutputError: If something is there already, or cannot be written.
    """
    kind = kind or format_of(path)
    check_target(path, kind=kind, overwrite=overwrite)
    if kind == "folder":
        _write_folder(dataset, path)
    elif kind == "csv":
        write_csv(dataset, path)
    else:
        write_npz(dataset, path)


def check_target(path: Path, *, kind: Format | None = None, overwrite: bool = False) -> None:
    """Refuse early what :func:`write_dataset` would refuse after the reading.

    Raises:
        DataError: If there is no such layout.
        OutputError: If something is there that is not to be replaced.
    """
    kind = kind or format_of(path)
    if kind not in get_args(Format):
        raise DataError(f"data sets are written as {', '.join(get_args(Format))}. Received: {kind!r}")
    if kind == "folder":
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(f"{path} exists and is not empty; remove it or choose another name")
    elif path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
    elif path.exists() and not overwrite:
        raise OutputError(f"{path} exists; remove it, choose another name, or overwrite it (--overwrite)")


def write_csv(dataset: FaceDataset, path: Path) -> None:
    """Write FER2013's layout: ``emotion,pixels,Usage``.

    Raises:
        DataError: If the labels are not FER2013's, since numbers would then mean something else.
        OutputError: If the file cannot be written.
    """
    if dataset.taxonomy != FER2013:
        raise DataError(
            f"a csv in FER2013's layout holds FER2013 labels, and {dataset.source} has those of "
            f"{dataset.taxonomy.id!r} ({', '.join(dataset.taxonomy.labels)}); write a folder or an .npz"
        )
    words = [str(value) for value in range(256)]

    def write(stream: IO[str]) -> None:
        stream.write("emotion,pixels,Usage\n")
        for image, label, split in zip(dataset.images, dataset.labels, dataset.split, strict=True):
            pixels = " ".join([words[value] for value in image.ravel().tolist()])
            stream.write(f"{label},{pixels},{SPLITS[split]}\n")

    with replacing(path) as temporary:
        _write_text(temporary, write)


def write_votes(dataset: FaceDataset, path: Path) -> None:
    """Write votes in the layout of ``fer2013new.csv``, row by row with :func:`write_csv`.

    Raises:
        DataError: If there are no votes.
        OutputError: If the file cannot be written.
    """
    with replacing(path) as temporary:
        _write_votes(dataset, temporary)


def write_with_votes(dataset: FaceDataset, path: Path, votes: Path, *, overwrite: bool = False) -> None:
    """Write a data set and, in a file of their own, its votes: both or none.

    Args:
        dataset: What to write.
        path: Where to, as :func:`write_dataset`.
        votes: Where the votes go, as :func:`write_votes`.
        overwrite: Replace files that are there.

    Raises:
        DataError: If there are no votes, or the layout cannot hold the data set.
        OutputError: If something is there already, or cannot be written.
    """
    check_target(votes, kind="csv", overwrite=overwrite)
    with replacing(votes) as temporary:
        _write_votes(dataset, temporary)
        write_dataset(dataset, path, overwrite=overwrite)


def _write_votes(dataset: FaceDataset, path: Path) -> None:
    """Write votes to a temporary file."""
    votes = dataset.votes
    if votes is None:
        raise DataError(f"{dataset.source} has no votes to write")

    def write(stream: IO[str]) -> None:
        stream.write(f"Usage,Image name,{','.join(VOTE_COLUMNS)}\n")
        for row, (split, counts) in enumerate(zip(dataset.split, votes.tolist(), strict=True)):
            stream.write(f"{SPLITS[split]},fer{row:07d}.png,{','.join(map(str, counts))}\n")

    _write_text(path, write)


def _write_text(path: Path, write: Callable[[IO[str]], None]) -> None:
    """Write text, packed if the name says so; packed files depend on their content alone, not on the time."""
    with path.open("wb") as raw:
        if path.name.lower().endswith(".gz"):
            with (
                gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
                io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as stream,
            ):
                write(stream)
        else:
            with io.TextIOWrapper(raw, encoding="utf-8", newline="\n") as stream:
                write(stream)


def _write_folder(dataset: FaceDataset, path: Path) -> None:
    """Write one PNG per face into a folder beside ``path``, then rename it."""
    bad = [
        label for label in dataset.taxonomy.labels if label in (".", "..") or set(label) & set('/\\:*?"<>|\0')
    ]
    if bad:
        raise DataError(f"label {bad[0]!r} cannot name a folder")
    building: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        for split, label in sorted(set(zip(dataset.split.tolist(), dataset.labels.tolist(), strict=True))):
            (building / _SPLIT_FOLDERS[split] / dataset.taxonomy.labels[label]).mkdir(
                parents=True, exist_ok=True
            )
        for row, (image, label, split) in enumerate(
            zip(dataset.images, dataset.labels, dataset.split, strict=True)
        ):
            folder = building / _SPLIT_FOLDERS[split] / dataset.taxonomy.labels[label]
            done, png = cv2.imencode(".png", np.ascontiguousarray(image))
            if not done:
                raise OutputError(f"cannot encode the face of row {row + 1}")
            (folder / f"{SPLITS[split]}_{row:08d}.png").write_bytes(png.tobytes())
        building.chmod(0o755)
        building.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
