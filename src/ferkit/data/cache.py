"""The cache of decoded data: memory-mapped arrays keyed by content, so that a second load takes no time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import OutputError
from ferkit.core.files import cache_folder, write_json

LAYOUT = 3
"""Part of every key: raise it when what the readers make of the same bytes changes."""

_BUILDING = ".building-"
_ABANDONED_SECONDS = 86_400
_SMALL = 1 << 16

logger = logging.getLogger("ferkit.data")


def cache_root() -> Path:
    """Return the folder for decoded data, below :func:`ferkit.core.files.cache_folder`."""
    return cache_folder() / "data"


@dataclass(frozen=True, slots=True)
class Entry:
    """What came out of the cache.

    Args:
        arrays: Arrays by name, memory-mapped and read-only.
        digests: SHA-256 (hex) of each array.
        meta: What was kept beside them.
    """

    arrays: Mapping[str, NDArray[Any]]
    digests: Mapping[str, str]
    meta: Mapping[str, Any]


def digest_of(array: NDArray[Any]) -> str:
    """Return the SHA-256 (hex) of an array's values in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        # file_digest sets up a large buffer each time, which for a face of 2 KB takes most of the time
        start = stream.read(_SMALL)
        if len(start) < _SMALL:
            return hashlib.sha256(start).hexdigest()
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest_of_json(content: Any) -> str:
    """Return the SHA-256 (hex) of what JSON says, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class DatasetCache:
    """Decoded data sets under one folder.

    Two steps lead to an entry: an index from (path, size, time of change) to the content's digest, which
    spares hashing a large file again, and the entry itself under a key made of that digest. An entry is
    built in a folder beside and then renamed, so a reader never meets half of one; it is checked against
    its digests when read, and a damaged one is removed and built anew. A folder that cannot be written
    is said in one warning (logger ``ferkit.data``), and data is decoded each time.

    Args:
        root: The folder, or None to keep nothing.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self._complained = False

    def content_hash(self, root: Path, names: Sequence[str], note: Path | None) -> str:
        """Return a digest of the content of files, and of their names.

        Files whose sizes and times of change are those in the index are not read again.

        Args:
            root: A file, or the folder that the names are relative to.
            names: The files; none where ``root`` is the file itself.
            note: What :meth:`note` returned for them.

        Raises:
            OSError: If a file cannot be read.
        """
        if note is not None:
            with contextlib.suppress(OSError, ValueError):
                known = json.loads(note.read_text())
                if isinstance(known, str) and len(known) == 64:
                    return known
        digest = hashlib.sha256()
        for name in names or [""]:
            line = f"{name}\0{hash_file(root / name if name else root)}\n"
            digest.update(line.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def remember(self, note: Path | None, content: str) -> None:
        """Keep a digest in the index, for the files as they were when ``note`` was taken."""
        if note is not None and not note.exists():
            try:
                write_json(note, content)
            except OutputError as error:
                self._complain(str(error))

    def note(self, root: Path, names: Sequence[str]) -> Path | None:
        """Return the file of the index for files as they are now; None where nothing is kept.

        Take it before anything is read: only where it is the same afterwards was one content read.

        Raises:
            OSError: If a file is not there.
        """
        if self.root is None:
            return None
        # plain strings: a folder may hold tens of thousands of files, and paths as objects take twice as long
        base = os.path.abspath(root)  # noqa: PTH100
        digest = hashlib.sha256(f"{base}\n".encode("utf-8", "surrogatepass"))
        for name in names or [""]:
            status = os.stat(f"{base}{os.sep}{name}" if name else base)  # noqa: PTH116
            line = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"
            digest.update(line.encode("utf-8", "surrogatepass"))
        return self.root / "index" / f"{digest.hexdigest()}.json"

    def read(self, key: str) -> Entry | None:
        """Return the entry ``key``, or None if there is none or it is damaged."""
        if self.root is None:
            return None
        folder = self.root / key
        if not folder.is_dir():
            return None
        try:
            record = json.loads((folder / "record.json").read_text())
            content = record["content"]
            if _digest_of_json(content) != record["digest"]:
                raise ValueError("record.json is not what was written")
            arrays = {}
            for name, expected in content["digests"].items():
                array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                if digest_of(array) != expected:
                    raise ValueError(f"{name}.npy is not what was written")
                # the map itself stays underneath: np.memmap only adds a slow __getitem__
                arrays[name] = np.asarray(array)
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("the cached data in %s are damaged (%s); they are built anew", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return Entry(arrays, content["digests"], content["meta"])

    def write(self, key: str, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Keep an entry, if the folder can be written."""
        if self.root is None:
            return
        building: Path | None = None
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._sweep()
            building = Path(tempfile.mkdtemp(dir=self.root, prefix=_BUILDING))
            for name, array in arrays.items():
                np.save(building / f"{name}.npy", array, allow_pickle=False)
            content = {"digests": {name: digest_of(a) for name, a in arrays.items()}, "meta": dict(meta)}
            write_json(building / "record.json", {"content": content, "digest": _digest_of_json(content)})
            building.chmod(0o755)
            target = self.root / key
            # another process may have been faster; its entry has the same content
            if not target.is_dir():
                building.rename(target)
        except (OSError, OutputError) as error:
            self._complain(str(error))
        finally:
            if building is not None:
                shutil.rmtree(building, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what processes that were killed left half built."""
        for left in Path(self.root or ".").glob(f"{_BUILDING}*"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)

    def _complain(self, reason: str) -> None:
        """Say once that nothing is kept."""
        if not self._complained:
            logger.warning("decoded data are not kept, so the next load takes as long: %s", reason)
            self._complained = True
