"""The reader of folders of pictures, one per label, with or without split folders; also in a zip or a tar."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ferkit.core.crops import fit_crop
from ferkit.core.errors import DataError, ImageError
from ferkit.core.images import SUFFIXES, load_image, to_gray
from ferkit.core.taxonomy import KNOWN, Taxonomy
from ferkit.data.archives import list_members, name_some, read_members
from ferkit.data.dataset import PRIVATE_TEST, PUBLIC_TEST, SPLITS, TRAINING, FaceDataset
from ferkit.data.holdout import name_splits
from ferkit.data.labels import known_taxonomy, numbers_of

CropFunction: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.uint8] | None]
"""From an RGB photo uint8 ``[H, W, 3]`` to its face uint8 ``[S, S]``, or None if it shows none."""

SPLIT_FOLDERS = {
    "train": TRAINING,
    "training": TRAINING,
    "val": PUBLIC_TEST,
    "valid": PUBLIC_TEST,
    "validation": PUBLIC_TEST,
    "publictest": PUBLIC_TEST,
    "test": PRIVATE_TEST,
    "testing": PRIVATE_TEST,
    "privatetest": PRIVATE_TEST,
}
_MERGED_TEST = ("test", "testing")
"""Folders in which Kaggle's copy of FER2013 has both test splits, which the file names distinguish."""

_SPLIT_PREFIX = re.compile(r"(Training|PublicTest|PrivateTest)_[^/]*", re.ASCII)
"""Kaggle's file names of FER2013 begin with the split."""


@dataclass(frozen=True, slots=True)
class Place:
    """One picture: its name in the source, its label and its split."""

    name: str
    label: int
    split: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Labels and splits by file names."""

    taxonomy: Taxonomy  # the labels
    places: tuple[Place, ...]  # one entry per picture, sorted by name
    ignored: dict[str, int]  # number of files that are no pictures, by suffix, the most frequent first


def is_picture(name: str) -> bool:
    """Return whether a file is a picture by its name."""
    return name.lower().endswith(SUFFIXES)


def read_face_folder(
    path: Path, size: int = 48, *, crop: CropFunction | None = None, skip_unreadable: bool = False
) -> FaceDataset:
    """Read pictures of faces from a folder, a zip or a tar laid out as :func:`plan_layout` says.

    Where the layout names no PublicTest, a part of Training is held out as it.

    Args:
        path: The source.
        size: Side in pixels that faces are scaled to. Pictures that are not square are padded with their own
            edge, so that no face is stretched or cut.
        crop: Finds the face in a photo; None takes the whole picture as the face.
        skip_unreadable: Leave out pictures that cannot be decoded, and name them in ``unreadable``.

    Raises:
        DataError: If the layout gives no labels, no picture has a face, or pictures cannot be decoded; then
            the message names up to ten of them.
    """
    layout = plan_layout(str(path), list_members(path))
    faces: dict[str, NDArray[np.uint8]] = {}
    unreadable: dict[str, ImageError] = {}
    empty: list[str] = []
    for name, content in read_members(path, [place.name for place in layout.places]):
        try:
            photo = load_image(content)
            face = fit_crop(to_gray(photo), size) if crop is None else crop(photo)
        except ImageError as error:
            unreadable[name] = error
            continue
        if face is None:
            empty.append(name)
        else:
            faces[name] = face
    count = len(layout.places)
    raise_unreadable(path, dict(sorted(unreadable.items())), count, skip=skip_unreadable)
    kept = [place for place in layout.places if place.name in faces]
    if not kept:
        raise DataError(f"{path}: no face in any of {count} pictures")
    notes = []
    if layout.ignored:
        kinds = ", ".join(f"{n} {suffix or 'without a suffix'}" for suffix, n in layout.ignored.items())
        notes.append(f"files that are no pictures are ignored: {kinds}")
    if empty:
        notes.append(f"no face in {len(empty)} of {count} photos, left out: {name_some(sorted(empty))}")
    images = np.stack([faces[place.name] for place in kept])
    labels = np.array([place.label for place in kept], np.int64)
    split, named = name_splits(images, labels, np.array([place.split for place in kept], np.uint8))
    return FaceDataset(
        images,
        labels,
        split,
        layout.taxonomy,
        split_named=named,
        unreadable=tuple(sorted(unreadable)),
        notes=tuple(notes),
    )


def raise_unreadable(source: Path, unreadable: Mapping[str, ImageError], count: int, *, skip: bool) -> None:
    """Raise a DataError that names the first ten of the pictures that cannot be decoded, unless ``skip``."""
    if unreadable and not skip:
        first = next(iter(unreadable))
        raise DataError(
            f"{source}: {len(unreadable)} of {count} pictures cannot be read; repair or remove "
            f"{name_some([*unreadable])} ({first}: {unreadable[first]})"
        )


def plan_layout(source: str, names: Sequence[str]) -> Layout:
    """Derive labels and splits from file names.

    Pictures lie in ``label/`` or in ``split/label/``, perhaps below folders that hold nothing else. Splits:

    * ``train``, ``val`` (or ``valid``, ``validation``, ``PublicTest``) and ``test`` (or ``PrivateTest``) are
      Training, PublicTest and PrivateTest;
    * in ``test`` (``testing``), Kaggle's file names ``PublicTest_1.jpg`` and ``PrivateTest_1.jpg`` decide; so
      they do without split folders, if all names are of that kind. Elsewhere the folder decides;
    * all other pictures are Training.

    Folders whose names differ in case only are one label, spelled as in Training. If the names are the labels
    of FER2013 or FER+ in any case, the taxonomy is that one; else it is ``own``, with the names sorted, or
    ``raf-db`` or ``affectnet`` for the numbers of these datasets (:mod:`ferkit.data.labels` converts them).

    ``names`` are those of :func:`ferkit.data.archives.list_members`.

    Raises:
        DataError: If a picture has no label, or the folder of a label has no picture.
    """
    pictures = sorted(name for name in names if is_picture(name))
    if not pictures:
        found = f"{len(names)} other files, such as {names[0]!r}" if names else "nothing"
        raise DataError(
            f"{source}: holds no picture ({', '.join(SUFFIXES)}); folders named by label were expected. "
            f"Received: {found}"
        )
    folders = [PurePosixPath(name).parent.parts for name in pictures]
    skip = _outer_folders(folders)
    groups: list[str] = []  # the split folder of each picture, or ""
    labels: list[str] = []
    for name, parts in zip(pictures, folders, strict=True):
        group, label = _group_and_label(parts[skip:])
        if label is None:
            raise DataError(
                f"{source}: {name!r} is neither in LABEL/ nor in train/LABEL/, val/LABEL/ or test/LABEL/, so "
                "its label is unknown"
            )
        groups.append(group)
        labels.append(label)
    if "" in groups and any(groups):
        odd = pictures[groups.index("")]
        raise DataError(
            f"{source}: {odd!r} is in no split folder while others are; use them for all or for none"
        )
    ignored = _ignored_files(source, names, set(folders), labels, skip, grouped=any(groups))
    splits = _splits_of(source, pictures, groups)
    # Training comes first and decides the spelling.
    spelled = [label for _, label in sorted(set(zip(splits, labels, strict=True)))]
    taxonomy, columns = taxonomy_of_names(source, spelled, pictures[0])
    places = map(Place, pictures, [columns[label] for label in labels], splits)
    return Layout(taxonomy, tuple(places), ignored)


def _group_and_label(parts: Sequence[str]) -> tuple[str, str | None]:
    """Return the split folder (``""``: none) and the label of a folder (None: none)."""
    if len(parts) == 2 and parts[0].lower() in SPLIT_FOLDERS:
        return parts[0], parts[1]
    return "", parts[0] if len(parts) == 1 else None


def _outer_folders(folders: Sequence[tuple[str, ...]]) -> int:
    """Count the outer folders that hold everything else and are no split."""
    skip = 0
    while (
        all(len(parts) > skip + 1 for parts in folders)
        and len({parts[skip] for parts in folders}) == 1
        and folders[0][skip].lower() not in SPLIT_FOLDERS
    ):
        skip += 1
    return skip


def _ignored_files(
    source: str,
    names: Sequence[str],
    filled: set[tuple[str, ...]],
    labels: Sequence[str],
    skip: int,
    *,
    grouped: bool,
) -> dict[str, int]:
    """Count the files that are no pictures, and refuse label folders that hold only such files or nothing."""
    known = known_taxonomy(labels)
    may_be_empty = set(known.labels if known else ()) - {label.casefold() for label in labels}
    outer = next(iter(filled))[:skip]
    others = [name for name in names if not is_picture(name)]
    for name in others:
        path = PurePosixPath(name)
        if name.endswith("/"):
            if path.name.casefold() not in may_be_empty:
                raise DataError(
                    f"{source}: the folder {name} is empty; remove it, or add that label's pictures"
                )
        elif path.parent.parts not in filled and path.parts[:skip] == outer:
            group, label = _group_and_label(path.parent.parts[skip:])
            if label is not None and bool(group) == grouped:
                raise DataError(
                    f"{source}: {path.parent}/ holds no picture ({', '.join(SUFFIXES)}), only files such as "
                    f"{name!r}; convert them to PNG or JPEG, or remove the folder"
                )
    return dict(
        Counter(PurePosixPath(name).suffix.lower() for name in others if name[-1] != "/").most_common()
    )


def taxonomy_of_names(
    source: str, names: Sequence[str], example: str = ""
) -> tuple[Taxonomy, dict[str, int]]:
    """Return the taxonomy of label names, and the column of each name.

    Of names that differ in case only, the first decides the spelling. ``source`` and ``example``, a file
    name, may name the dataset.

    Raises:
        DataError: If there are fewer than two labels.
    """
    spelled: dict[str, str] = {}
    for name in names:
        spelled.setdefault(name.casefold(), name)
    for known in KNOWN.values():
        if set(spelled) == set(known.labels):
            return known, {name: known.index(name.casefold()) for name in names}
    labels = sorted(spelled.values())
    if len(labels) < 2:
        raise DataError(
            f"{source}: two or more labels were expected (of pictures: a folder for each). "
            f"Received one: {labels[0]!r}"
        )
    taxonomy = Taxonomy(numbers_of(labels, (source, example)), tuple(labels))
    return taxonomy, {name: labels.index(spelled[name.casefold()]) for name in names}


def _splits_of(source: str, names: Sequence[str], groups: Sequence[str]) -> list[int]:
    """Return the split of each picture by its split folder and its name."""
    splits = [SPLIT_FOLDERS[group.lower()] if group else TRAINING for group in groups]
    for group in dict.fromkeys(groups):
        if group and group.lower() not in _MERGED_TEST:
            continue
        rows = [k for k, g in enumerate(groups) if g == group]
        prefixes = {
            k: found[1] for k in rows if (found := _SPLIT_PREFIX.fullmatch(PurePosixPath(names[k]).name))
        }
        if not group:
            if len(prefixes) == len(rows):
                splits = [SPLITS.index(prefixes[k]) for k in rows]
            continue
        # A Training_... that somebody moved to test/ is a test picture.
        tests = {k: SPLITS.index(prefix) for k, prefix in prefixes.items() if prefix != SPLITS[TRAINING]}
        if tests and len(prefixes) < len(rows):
            odd = names[next(k for k in rows if k not in prefixes)]
            raise DataError(
                f"{source}: some file names in {group}/ begin with PublicTest or PrivateTest and {odd!r} "
                "does not; name all of them so, or none"
            )
        for k, split in tests.items():
            splits[k] = split
    return splits
