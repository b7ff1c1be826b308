"""Folders of pictures, one per label, with or without folders for the splits; also inside a zip or a tar."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ferkit.core.crops import fit_crop
from ferkit.core.errors import DataError, ImageError, TaxonomyError
from ferkit.core.images import load_image, to_gray
from ferkit.core.taxonomy import KNOWN, Taxonomy
from ferkit.data.archives import list_members, read_members
from ferkit.data.dataset import SPLITS
from ferkit.data.holdout import hold_out
from ferkit.data.labelset import OWN, known_set_of

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
"""Files that count as pictures, as in folders of photos; all others are passed over, which is said."""

_TRAIN, _VALIDATION, _TEST = 0, 1, 2
_SPLIT_FOLDERS = {
    "train": _TRAIN,
    "training": _TRAIN,
    "val": _VALIDATION,
    "valid": _VALIDATION,
    "validation": _VALIDATION,
    "publictest": _VALIDATION,
    "test": _TEST,
    "testing": _TEST,
    "privatetest": _TEST,
}
_KAGGLES_TEST = ("test", "testing")
"""Folders in which PublicTest and PrivateTest may lie together, told apart by the files' names."""

_TAG = re.compile(r"(Training|PublicTest|PrivateTest)_[^/]*", re.ASCII)
"""Kaggle's file names of FER2013 begin with the split."""


@dataclass(frozen=True, slots=True)
class Place:
    """One picture: its name in the source, its label, and its split where the source tells it."""

    name: str
    label: int
    split: int | None


@dataclass(frozen=True, slots=True)
class Layout:
    """What the names in a folder say.

    Args:
        taxonomy: The labels.
        places: One entry per picture, in the order of their names.
        passed_over: How many files are no pictures, by suffix.
    """

    taxonomy: Taxonomy
    places: tuple[Place, ...]
    passed_over: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class FolderFaces:
    """Faces read from folders.

    Args:
        images: uint8 ``[N, S, S]``.
        labels: int64 ``[N]``.
        split: uint8 ``[N]``, positions in ``SPLITS``.
        taxonomy: The labels' names.
        split_named: Whether the source names all splits; False where a part of Training was held out.
        passed_over: How many files are no pictures, by suffix.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    split: NDArray[np.uint8]
    taxonomy: Taxonomy
    split_named: bool
    passed_over: Mapping[str, int]


def is_picture(name: str) -> bool:
    """Tell by its name whether a file is a picture."""
    return name.lower().endswith(SUFFIXES)


def find_passed_over(source: str, names: Sequence[str]) -> dict[str, int]:
    """Count the files that are no pictures, by suffix, the most frequent first; other files have ``""``.

    Args:
        source: For messages.
        names: File names relative to the source, with ``/`` between folders.

    Raises:
        DataError: If such files are all that lies in a folder where a label's pictures are expected.
    """
    others = [name for name in names if not is_picture(name)]
    if not others:
        return {}
    filled = {
        PurePosixPath(parent).parts for parent in {n.rpartition("/")[0] for n in names if is_picture(n)}
    }
    if filled:
        skip = _common_folders(list(filled))
        depths = {len(parts) for parts in filled}
        outer = next(iter(filled))[:skip]
        for name in others:
            parts = PurePosixPath(name).parent.parts
            if parts in filled or len(parts) not in depths or parts[:skip] != outer:
                continue
            if len(parts) == skip + 1 or (len(parts) == skip + 2 and parts[skip].lower() in _SPLIT_FOLDERS):
                raise DataError(
                    f"{source}: {'/'.join(parts)}/ holds no picture ({', '.join(SUFFIXES)}), only files such "
                    f"as {name!r}; convert them to PNG or JPEG, or remove the folder"
                )
    return dict(Counter(PurePosixPath(name).suffix.lower() for name in others).most_common())


def describe_passed_over(source: str, counts: Mapping[str, int]) -> str:
    """Return the remark about files that are no pictures; empty if there are none."""
    if not counts:
        return ""
    kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in counts.items())
    return f"{source}: files that are no pictures are passed over: {kinds}"


def plan_layout(source: str, names: Sequence[str]) -> Layout:
    """Work out labels and splits from file names.

    Pictures lie in ``label/`` or in ``split/label/``, perhaps below folders that hold nothing else. Splits:

    * ``train``, ``val`` (or ``valid``, ``validation``, ``PublicTest``) and ``test`` (or ``PrivateTest``) are
      Training, PublicTest and PrivateTest;
    * in ``test`` (``testing``), names like Kaggle's ``PublicTest_123.jpg`` and ``PrivateTest_123.jpg`` tell
      the two apart; where there are no split folders and all names are of that kind, they decide. Elsewhere
      the folder decides, whatever the file is called;
    * where the folders name no PublicTest, a part of Training becomes it (:mod:`ferkit.data.holdout`).

    Folders whose names differ in case alone are one label, spelt as in Training. Labels are those of FER2013
    or FER+, in their order, where the folders' names (whatever their case) are just these; else a taxonomy
    ``own`` with the names sorted (:mod:`ferkit.data.labelset` may bring it into a known one).

    Args:
        source: For messages.
        names: File names relative to the source, with ``/`` between folders.

    Raises:
        DataError: If the names do not tell a label for each picture, or a label's folder holds only other
            files.
    """
    pictures = sorted(name for name in names if is_picture(name))
    if not pictures:
        seen = f"{len(names)} other files, such as {names[0]!r}" if names else "nothing"
        raise DataError(
            f"{source}: holds no picture ({', '.join(SUFFIXES)}); folders named by label were expected. "
            f"Received: {seen}"
        )
    passed_over = find_passed_over(source, names)
    folders = [PurePosixPath(name).parent.parts for name in pictures]
    skip = _common_folders(folders)
    groups: list[str | None] = []
    labels: list[str] = []
    for name, whole in zip(pictures, folders, strict=True):
        inside = whole[skip:]
        if len(inside) == 1:
            groups.append(None)
        elif len(inside) == 2 and inside[0].lower() in _SPLIT_FOLDERS:
            groups.append(inside[0])
        else:
            raise DataError(
                f"{source}: {name!r} lies neither in LABEL/ nor in train/LABEL/, val/LABEL/ or test/LABEL/, "
                "so its label is unknown"
            )
        labels.append(inside[-1])
    if None in groups and any(group is not None for group in groups):
        odd = pictures[groups.index(None)]
        raise DataError(
            f"{source}: {odd!r} lies in no split while others do; use split folders for all or for none"
        )
    splits = _splits_of(source, pictures, groups)
    taxonomy, column = _taxonomy_of(source, labels, splits)
    places = [
        Place(name, column[label], split) for name, label, split in zip(pictures, labels, splits, strict=True)
    ]
    return Layout(taxonomy, tuple(places), passed_over)


def _common_folders(folders: Sequence[tuple[str, ...]]) -> int:
    """Count the outer folders that hold everything and say nothing."""
    skip = 0
    while (
        all(len(parts) > skip + 1 for parts in folders)
        and len({parts[skip] for parts in folders}) == 1
        and folders[0][skip].lower() not in _SPLIT_FOLDERS
    ):
        skip += 1
    return skip


def _taxonomy_of(
    source: str, labels: Sequence[str], splits: Sequence[int | None]
) -> tuple[Taxonomy, dict[str, int]]:
    """Return the taxonomy of folder names, and each name's column in it."""
    spelt: dict[str, str] = {}
    # what is to be divided is Training, too
    for _, label in sorted({(split or _TRAIN, label) for split, label in zip(splits, labels, strict=True)}):
        spelt.setdefault(label.casefold(), label)
    for known in KNOWN.values():
        if set(spelt) == set(known.labels):
            return known, {label: known.index(label.casefold()) for label in set(labels)}
    distinct = sorted(spelt.values())
    try:
        column = {label: distinct.index(spelt[label.casefold()]) for label in set(labels)}
        return Taxonomy(OWN, tuple(distinct)), column
    except TaxonomyError as error:
        raise DataError(f"{source}: one folder per label was expected; {error}") from error


def _splits_of(source: str, names: Sequence[str], groups: Sequence[str | None]) -> list[int | None]:
    """Return each picture's split, None where it is to be worked out from the images."""
    splits: list[int | None] = [None if group is None else _SPLIT_FOLDERS[group.lower()] for group in groups]
    for group in dict.fromkeys(groups):
        if group is not None and group.lower() not in _KAGGLES_TEST:
            continue
        rows = [k for k, g in enumerate(groups) if g == group]
        tags = {k: tag[1] for k in rows if (tag := _TAG.fullmatch(PurePosixPath(names[k]).name))}
        if group is None:
            if len(tags) == len(rows):
                for k, word in tags.items():
                    splits[k] = SPLITS.index(word)
            continue
        # a Training_... that somebody moved into test/ is meant to be tested on
        told = {k: SPLITS.index(word) for k, word in tags.items() if word != SPLITS[_TRAIN]}
        if told and len(tags) < len(rows):
            odd = names[next(k for k in rows if k not in tags)]
            raise DataError(
                f"{source}: some names in {group}/ tell PublicTest from PrivateTest and {odd!r} does not; "
                "name them all so, or none"
            )
        for k, split in told.items():
            splits[k] = split
    if _VALIDATION in splits:
        return splits
    # nobody named a PublicTest: Training is to be divided by content
    return [None if split == _TRAIN else split for split in splits]


def decode_face(content: bytes, size: int, place: str) -> NDArray[np.uint8]:
    """Decode a picture of one face to uint8 ``[size, size]``, gray.

    A picture that is not square is filled up with its own edge pixels, so that no face is stretched or cut.

    Raises:
        DataError: If it is no picture.
    """
    try:
        return fit_crop(to_gray(load_image(content)), size)
    except ImageError as error:
        raise DataError(f"{place}: {error}") from error


def read_face_folder(path: Path, size: int = 48) -> FolderFaces:
    """Read pictures of faces from a folder, a zip or a tar laid out as :func:`plan_layout` says.

    Args:
        path: The source.
        size: Side that faces are brought to, in pixels.

    Raises:
        DataError: If the layout tells no labels, a label's folder is empty or holds only other files, or a
            picture cannot be read.
    """
    layout = plan_layout(str(path), list_members(path))
    if path.is_dir():
        _refuse_empty_folders(path, layout.taxonomy)
    return gather_faces(path, layout, lambda name, content: decode_face(content, size, f"{path}: {name}"))


def gather_faces(
    path: Path, layout: Layout, face_of: Callable[[str, bytes], NDArray[np.uint8] | None]
) -> FolderFaces:
    """Turn each picture of a layout into a face.

    Args:
        path: The source.
        layout: What its names say.
        face_of: Makes uint8 ``[S, S]`` of a picture's name and content, or None where it shows no face; such
            pictures are left out.

    Raises:
        DataError: If a picture cannot be read, or no face is left.
    """
    faces: dict[str, NDArray[np.uint8]] = {}
    for name, content in read_members(path, [place.name for place in layout.places]):
        face = face_of(name, content)
        if face is not None:
            faces[name] = face
    kept = [place for place in layout.places if place.name in faces]
    if not kept:
        raise DataError(f"{path}: no face in any of {len(layout.places)} pictures")
    images = np.stack([faces[place.name] for place in kept])
    labels = np.array([place.label for place in kept], dtype=np.int64)
    unknown = np.array([place.split is None for place in kept])
    split = np.array([place.split or 0 for place in kept], dtype=np.uint8)
    split[unknown] = hold_out(images[unknown], labels[unknown])
    return FolderFaces(images, labels, split, layout.taxonomy, not bool(unknown.any()), layout.passed_over)


def _refuse_empty_folders(path: Path, taxonomy: Taxonomy) -> None:
    """Refuse a folder in which nothing lies: a label without pictures is a mistake somewhere.

    Not where all else is of a known set of labels: then that it lacks is said.
    """
    known = known_set_of(taxonomy.labels)
    lacking = set(known.labels) - {name.casefold() for name in taxonomy.labels} if known else set()
    for folder in sorted(p for p in path.rglob("*") if p.is_dir() and not p.name.startswith(".")):
        if folder.name.casefold() not in lacking and not any(folder.iterdir()):
            raise DataError(f"{folder}: is empty; remove it, or put that label's pictures there")
