"""The cache of decoded datasets: memory-mapped arrays, so that a second load takes no time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError, OutputError, TaxonomyError
from ferkit.core.files import cache_folder, write_json
from ferkit.core.taxonomy import Taxonomy
from ferkit.data.dataset import FaceDataset

LAYOUT = 4
"""Part of every key: increase it when the readers return something else for the same files."""

_BUILDING = ".building-"
_ABANDONED_SECONDS = 86_400
_ARRAYS = ("images", "labels", "split", "votes")

logger = logging.getLogger("ferkit.data")


def cache_root() -> Path:
    """Return the folder of decoded datasets, below :func:`ferkit.core.files.cache_folder`."""
    return cache_folder() / "data"


def digest_of(array: NDArray[Any]) -> str:
    """Return the SHA-256 (hex) of an array's values in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


class DatasetCache:
    """Decoded datasets, a folder each.

    An entry belongs to a path and to the sizes and modification times of its files; a new entry replaces the
    old ones of the same path. An entry is built under a temporary name and then renamed, so that it is never
    read half written. A damaged entry is removed and built again. If the folder cannot be written, a warning
    says so (logger ``ferkit.data``), and data is decoded at each load.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = root

    def key(self, kind: str, path: Path, names: Sequence[str]) -> str:
        """Return the name of the entry for files as they are now.

        ``names`` are files in the folder ``path``; empty where ``path`` is the file itself. ``kind`` is the
        layout of the source, with the options of its reader.
        """
        # Strings and os.stat: with Path objects, folders of many thousand files take twice as long.
        base = os.path.abspath(path)  # noqa: PTH100
        source = hashlib.sha256(f"{LAYOUT}\n{kind}\n{base}".encode("utf-8", "surrogatepass"))
        state = hashlib.sha256()
        for name in names or [""]:
            try:
                status = os.stat(f"{base}{os.sep}{name}" if name else base)  # noqa: PTH116
                line = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"
            except OSError:
                line = f"{name}\0missing\n"
            state.update(line.encode("utf-8", "surrogatepass"))
        return f"{source.hexdigest()[:24]}-{state.hexdigest()[:24]}"

    def read(self, key: str) -> tuple[FaceDataset, str] | None:
        """Return a dataset and the digest of its images; None if there is no entry, or it is damaged."""
        if self.root is None or not (folder := self.root / key).is_dir():
            return None
        try:
            record = json.loads((folder / "record.json").read_text("utf-8"))
            arrays: dict[str, Any] = {
                # np.asarray drops the subclass np.memmap, whose indexing is slow; the map itself stays.
                name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
                for name in _ARRAYS
                if name != "votes" or record["votes"]
            }
            name, *labels = record["taxonomy"]
            dataset = FaceDataset(
                **arrays,
                taxonomy=Taxonomy(name, tuple(labels)),
                split_named=record["split_named"],
                in_rows=record["in_rows"],
                notes=tuple(record["notes"]),
            )
            return dataset, record["images_digest"]
        except (OSError, EOFError, ValueError, KeyError, TypeError, DataError, TaxonomyError) as error:
            logger.warning("the cached data in %s is damaged (%s) and is built again", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def write(self, key: str, dataset: FaceDataset) -> None:
        """Store a dataset, if the folder can be written."""
        if self.root is None:
            return
        building: Path | None = None
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(dir=self.root, prefix=_BUILDING))
            for name in _ARRAYS:
                if (array := getattr(dataset, name)) is not None:
                    np.save(building / f"{name}.npy", array, allow_pickle=False)
            record = {
                "taxonomy": [dataset.taxonomy.id, *dataset.taxonomy.labels],
                "votes": dataset.votes is not None,
                "split_named": dataset.split_named,
                "in_rows": dataset.in_rows,
                "notes": dataset.notes,
                "images_digest": digest_of(dataset.images),
            }
            write_json(building / "record.json", record)
            building.chmod(0o755)
            target = self.root / key
            # Another process may have been faster; its entry has the same content.
            if not target.is_dir():
                building.rename(target)
            self._remove_old(key)
        except (OSError, OutputError) as error:
            logger.warning("decoded data cannot be cached, so the next load takes as long: %s", error)
        finally:
            if building is not None:
                shutil.rmtree(building, ignore_errors=True)

    def _remove_old(self, key: str) -> None:
        """Remove older entries of the same path, and what killed processes left behind."""
        assert self.root is not None
        for entry in self.root.iterdir():
            old = entry.name.startswith(key.partition("-")[0]) and entry.name != key
            with contextlib.suppress(OSError):
                left = entry.name.startswith(_BUILDING)
                if old or (left and time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS):
                    shutil.rmtree(entry, ignore_errors=True)
