"""Small data sets on disk, in the layouts that people really have."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ferkit.core.images import write_image
from ferkit.data.cartoon import draw_faces

HEADER = "emotion,pixels,Usage"
SIDE = 16


def face_row(
    label: object = 3, usage: str | None = "Training", *, fill: object = 7, count: int = SIDE * SIDE
) -> str:
    """One row of a csv; all pixels are ``fill``."""
    cells = [str(label), " ".join([str(fill)] * count)]
    return ",".join(cells if usage is None else [*cells, usage])


def csv_text(rows: Sequence[str], header: str = HEADER) -> str:
    """A whole csv."""
    return "\n".join([header, *rows]) + "\n"


def drawn_csv(count: int = 42, seed: int = 0, header: str = HEADER) -> str:
    """A csv of drawn faces, with the columns in the order of ``header``."""
    faces = draw_faces(count, seed, SIDE)
    rows = []
    for image, label, split in zip(faces.images, faces.labels, faces.split, strict=True):
        cells = {
            "emotion": str(label),
            "pixels": " ".join(map(str, image.ravel().tolist())),
            "usage": ("Training", "PublicTest", "PrivateTest")[split],
        }
        rows.append(",".join(cells[name.strip().lower()] for name in header.split(",")))
    return csv_text(rows, header)


def drawn_images(count: int = 42, seed: int = 0) -> NDArray[np.uint8]:
    """The images of :func:`drawn_csv`."""
    return draw_faces(count, seed, SIDE).images


def pack(content: bytes, path: Path, inside: str = "fer2013.csv") -> Path:
    """Write ``content`` in the way that the suffix of ``path`` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(inside, content)
    elif ".tar" in name or name.endswith(".tgz"):
        mode = "w:gz" if name.endswith(("gz",)) else "w:xz" if name.endswith(".xz") else "w:"
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            member = tarfile.TarInfo(inside)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(content))
    elif name.endswith(".xz"):
        path.write_bytes(lzma.compress(content))
    else:
        path.write_bytes(content)
    return path


def write_faces(root: Path, names: Sequence[str], seed: int = 0) -> Path:
    """Write one drawn face, each different, to each name below ``root``."""
    images = draw_faces(len(names), seed, SIDE).images
    for name, image in zip(names, images, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(root / name, image)
    return root


def zip_folder(root: Path, path: Path, prefix: str = "") -> Path:
    """Pack a folder as a zip, or as a tar if the suffix says so."""
    files = sorted(file for file in root.rglob("*") if file.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, prefix + file.relative_to(root).as_posix())
    else:
        with tarfile.open(path, "w:gz") as archive:
            for file in files:
                archive.add(file, prefix + file.relative_to(root).as_posix())
    return path
