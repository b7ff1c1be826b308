"""The cache of decoded data sets: memory-mapped arrays keyed by content, so that a second load takes no time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from ferkit.errors import OutputError
from ferkit.files import write_json

LAYOUT = 1
"""Part of every key: raise it when what the readers make of the same bytes changes."""

logger = logging.getLogger("ferkit.data")


def cache_root() -> Path:
    """Return the folder for decoded data: ``$FERKIT_CACHE/data``, or ``ferkit/data`` in the user's cache."""
    override = os.environ.get("FERKIT_CACHE")
    return (Path(override) if override else platformdirs.user_cache_path("ferkit")) / "data"


@dataclass(frozen=True, slots=True)
class Cached:
    """Arrays that came out of the cache, and the digest of ``images``."""

    arrays: Mapping[str, NDArray[np.generic]]
    meta: Mapping[str, object]


def digest_of(array: NDArray[np.generic]) -> str:
    """Return the SHA-256 (hex) of an array's values in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stat_key(files: Iterable[Path]) -> str:
    """Return a digest of names, sizes and times of change; it changes whenever a file is written."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


class DatasetCache:
    """Decoded data sets under one folder.

    Two steps lead to an entry: an index from (path, size, time of change) to the content's digest, which
    spares hashing a large file again, and the entry itself under a key made of that digest. An entry is
    built in a folder beside and then renamed, so a reader never meets half of one; it is checked against
    its digests when read, and a damaged one is removed and built anew.

    Args:
        root: The folder, or None to keep nothing.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = root

    def content_hash(self, files: list[Path], compute_from: Iterable[Path] | None = None) -> str:
        """Return the digest of the content of ``files``, from the index where they have not changed."""
        listed = stat_key(files)
        note = None if self.root is None else self.root / "index" / f"{listed}.json"
        if note is not None:
            with contextlib.suppress(OSError, ValueError):
                known = json.loads(note.read_text())
                if isinstance(known, str) and len(known) == 64:
                    return known
        digest = hashlib.sha256()
        for file in compute_from or files:
            digest.update(hash_file(file).encode())
        content = digest.hexdigest()
        if note is not None:
            try:
                write_json(note, content)
            except OutputError as error:
                logger.warning("the cache is not used: %s", error)
        return content

    def read(self, key: str) -> Cached | None:
        """Return the entry ``key`` with its arrays memory-mapped, or None if there is none or it is damaged."""
        if self.root is None:
            return None
        folder = self.root / key
        if not folder.is_dir():
            return None
        try:
            meta = json.loads((folder / "meta.json").read_text())
            arrays: dict[str, NDArray[np.generic]] = {}
            for name, expected in meta["digests"].items():
                array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                if digest_of(array) != expected:
                    raise ValueError(f"{name}.npy is not what was written")
                arrays[name] = array
            return Cached(arrays, meta)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("the cache entry %s is damaged (%s); it is built anew", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def write(self, key: str, arrays: Mapping[str, NDArray[np.generic]], meta: Mapping[str, object]) -> None:
        """Keep an entry; where the folder cannot be written, say so and go on."""
        if self.root is None:
            return
        building: Path | None = None
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(dir=self.root, prefix=".building-"))
            for name, array in arrays.items():
                np.save(building / f"{name}.npy", array, allow_pickle=False)
            digests = {name: digest_of(array) for name, array in arrays.items()}
            write_json(building / "meta.json", {**meta, "digests": digests})
            target = self.root / key
            if target.is_dir():
                return  # another process was faster; its entry has the same content
            building.chmod(0o755)
            building.rename(target)
        except (OSError, OutputError) as error:
            logger.warning("the cache is not used: cannot write %s (%s)", self.root, error)
        finally:
            if building is not None:
                shutil.rmtree(building, ignore_errors=True)
