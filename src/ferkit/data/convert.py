"""Writers of datasets: FER2013's csv, folders of pictures, .npz; each is written completely or not at all."""

from __future__ import annotations

import contextlib
import gzip
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal, get_args

import cv2
import numpy as np

from ferkit.core.errors import DataError, OutputError
from ferkit.core.files import replacing
from ferkit.core.taxonomy import FER2013
from ferkit.data.dataset import SPLITS, VOTE_COLUMNS, FaceDataset
from ferkit.data.npz import write_npz

Format = Literal["csv", "folder", "npz"]

_SPLIT_FOLDERS = ("train", "test", "test")
"""Kaggle's folders: ``test`` has PublicTest and PrivateTest, which the file names distinguish."""


def format_of(path: Path) -> Format:
    """Return the format by the name: ``.csv`` or ``.csv.gz``, ``.npz``, or else a folder."""
    name = path.name.lower()
    if name.endswith((".csv", ".csv.gz")):
        return "csv"
    return "npz" if name.endswith(".npz") else "folder"


def write_dataset(
    dataset: FaceDataset, path: Path, *, kind: Format | None = None, votes: Path | None = None,
    overwrite: bool = False,
) -> None:  # fmt: skip
    """Write a dataset and, if asked, its votes: both or none.

    ``csv`` is FER2013's layout (``emotion,pixels,Usage``) and takes FER2013 labels only; ``folder`` is
    Kaggle's (``train/happy/Training_00000042.png``, ``test/happy/PublicTest_00028709.png``); ``npz`` keeps
    everything, votes included.

    The name gives the format if ``kind`` is None, and a ``.csv.gz`` is compressed. ``votes`` is a csv in the
    layout of ``fer2013new.csv``, aligned with the rows of ``path``. A folder that is not empty is never
    replaced.

    Raises:
        DataError: If the format cannot hold the dataset, or there are no votes to write.
        OutputError: If something exists already or cannot be written.
    """
    kind = kind or format_of(path)
    check_target(path, kind=kind, overwrite=overwrite)
    if votes is not None:
        check_target(votes, kind="csv", overwrite=overwrite)
    with contextlib.ExitStack() as stack:
        if votes is not None:
            _write_votes(dataset, stack.enter_context(replacing(votes)))
        if kind == "folder":
            _write_folder(dataset, path)
        elif kind == "csv":
            _write_csv(dataset, stack.enter_context(replacing(path)))
        else:
            write_npz(dataset, path)


def check_target(path: Path, *, kind: Format | None = None, overwrite: bool = False) -> None:
    """Raise the errors of :func:`write_dataset` that need no data.

    Raises:
        DataError: If there is no such format.
        OutputError: If something exists that is not to be replaced.
    """
    kind = kind or format_of(path)
    if kind not in get_args(Format):
        raise DataError(f"datasets are written as {', '.join(get_args(Format))}. Received: {kind!r}")
    if kind == "folder":
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(f"{path} exists and is not empty; remove it or choose another name")
    elif path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
    elif path.exists() and not overwrite:
        raise OutputError(f"{path} exists; remove it, choose another name, or overwrite it (--overwrite)")


def _write_csv(dataset: FaceDataset, path: Path) -> None:
    """Write FER2013's layout."""
    if dataset.taxonomy != FER2013:
        raise DataError(
            f"a csv in FER2013's layout holds FER2013 labels. Received: those of {dataset.taxonomy.id!r} "
            f"({', '.join(dataset.taxonomy.labels)}) from {dataset.source}; write a folder or an .npz"
        )
    words = [str(value) for value in range(256)]

    def write(stream: IO[str]) -> None:
        stream.write("emotion,pixels,Usage\n")
        for image, label, split in zip(dataset.images, dataset.labels, dataset.split, strict=True):
            pixels = " ".join([words[value] for value in image.ravel().tolist()])
            stream.write(f"{label},{pixels},{SPLITS[split]}\n")

    _write_text(path, write)


def _write_votes(dataset: FaceDataset, path: Path) -> None:
    """Write votes in the layout of ``fer2013new.csv``."""
    votes = dataset.votes
    if votes is None:
        raise DataError(f"{dataset.source} has no votes to write; join them with --votes")

    def write(stream: IO[str]) -> None:
        stream.write(f"Usage,Image name,{','.join(VOTE_COLUMNS)}\n")
        for row, (split, counts) in enumerate(zip(dataset.split, votes.tolist(), strict=True)):
            stream.write(f"{SPLITS[split]},fer{row:07d}.png,{','.join(map(str, counts))}\n")

    _write_text(path, write)


def _write_text(path: Path, write: Callable[[IO[str]], None]) -> None:
    """Write text, compressed for a ``.gz``; the bytes depend on the content alone, not on the time."""
    with contextlib.ExitStack() as stack:
        raw: Any = stack.enter_context(path.open("wb"))
        if path.name.lower().endswith(".gz"):
            raw = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0))
        write(stack.enter_context(io.TextIOWrapper(raw, encoding="utf-8", newline="\n")))


def _write_folder(dataset: FaceDataset, path: Path) -> None:
    """Write one PNG per face into a temporary folder beside ``path``, then rename it."""
    for label in dataset.taxonomy.labels:
        if label in (".", "..") or set(label) & set('/\\:*?"<>|\0'):
            raise DataError(f"label {label!r} cannot name a folder")
    building: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        rows = zip(dataset.images, dataset.labels, dataset.split, strict=True)
        for row, (image, label, split) in enumerate(rows):
            folder = building / _SPLIT_FOLDERS[split] / dataset.taxonomy.labels[label]
            folder.mkdir(parents=True, exist_ok=True)
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
