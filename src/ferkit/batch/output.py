"""The output of a batch: both tables in parts, which appear complete or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ferkit.batch.inputs import is_uri, locate
from ferkit.batch.tables import METADATA, UNREADABLE, Chunk, Tables, as_text
from ferkit.core.errors import OutputError
from ferkit.core.files import output_errors, replacing, write_bytes
from ferkit.core.locks import folder_lock

PART_PHOTOS = 1024
"""Photos of a part; so many are recognized again after a process was killed."""

SUFFIXES = (".parquet", ".csv", ".jsonl")
"""Suffixes of an output that is a file; any other output is a folder of Parquet parts."""

_FOREIGN = (
    ".arrow", ".db", ".feather", ".gz", ".html", ".jpeg", ".jpg", ".json", ".md", ".mp4", ".orc", ".png",
    ".sqlite", ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".zip",
)  # fmt: skip
"""Suffixes of names that were hardly meant for a folder."""

_GROUP_ROWS = 1 << 16  # rows of a row group in the joined file
_PART = re.compile(r"part-\d+\.parquet")


class Done:
    """The sources of the rows that an output has, as sorted digests of 8 bytes."""

    def __init__(self, sources: Iterator[str] | tuple[str, ...] = ()) -> None:
        digests = np.fromiter(map(_digest, sources), np.uint64)
        self._digests, self._counts = np.unique(digests, return_counts=True)

    def __len__(self) -> int:
        """Return the number of rows that were not asked for yet."""
        return int(self._counts.sum())

    def __call__(self, source: str) -> bool:
        """Return whether there is a row of this source; for each row once, as lists may repeat a photo."""
        digest = np.uint64(_digest(as_text(source)))
        place = int(np.searchsorted(self._digests, digest))
        if place == len(self._digests) or self._digests[place] != digest or not self._counts[place]:
            return False
        self._counts[place] -= 1
        return True


class Output:
    """Writes both tables in parts; a context manager, which writes the last part also after an error.

    A folder holds ``faces/part-00000.parquet`` and so on, and ``photos/``. For a file ``results.csv`` such a
    folder, ``results.csv.parts``, is joined into ``results.csv`` and ``results-photos.csv``.

    Args:
        target: A folder, as a path or URI, or a file with one of :data:`SUFFIXES`.
        tables: What the tables hold.
        resume: Whether to continue an output that was begun with the same settings.
        retry_failed: Whether photos that were unreadable are no longer done.
        part_photos: Photos of a part; a clip is a part by itself.

    Raises:
        OutputError: If there is such an output, or one of its two files, and it is not to be continued, or it
            has other settings or cannot be read, or a CSV file cannot hold a column.
    """

    def __init__(
        self,
        target: str,
        tables: Tables,
        *,
        resume: bool = False,
        retry_failed: bool = False,
        part_photos: int = PART_PHOTOS,
    ) -> None:
        self._tables = tables
        self._part_photos = 1 if tables.clips else part_photos
        is_folder = is_uri(target) or target.endswith("/") or os.path.isdir(target)  # noqa: PTH112
        self._suffix = "" if is_folder else Path(target).suffix.lower()
        if target == "-" or self._suffix in _FOREIGN:
            raise OutputError(
                f"{target} is no table that can be written; name a file with {', '.join(SUFFIXES)}, or a "
                "folder with a / at the end"
            )
        if self._suffix not in SUFFIXES:
            self._suffix = ""
        if self._suffix == ".csv" and (nested := [f for f in tables.photos if pa.types.is_nested(f.type)]):
            raise OutputError(
                f"a CSV file cannot hold the column {nested[0].name} ({nested[0].type}); write to "
                ".parquet or .jsonl, or keep other columns"
            )
        self._target = target
        self._waiting: list[Chunk] = []
        folder = f"{target}.parts" if self._suffix else target
        self._local = not is_uri(target)
        self._system, self._root = (fsspec.filesystem("file"), folder) if self._local else locate(folder)
        self._root = self._root.rstrip("/")
        parts = self._parts("photos")
        begun = f"{target} was begun before; --resume continues it, or choose another name"
        if parts and not resume:
            raise OutputError(begun)
        taken = [file for file in self.files() if os.path.lexists(file)] if self._suffix else []
        if taken and not parts:
            raise OutputError(
                f"{taken[0]} exists already, with no parts to continue; remove it or choose another name. A "
                "table that grows is a folder: -o FOLDER"
            )
        self._held = contextlib.ExitStack()
        if self._local:
            busy = OutputError(f"another run writes {target}; wait for it to end, or choose another name")
            self._held.enter_context(folder_lock(Path(self._root), busy))
            parts = self._parts("photos")
        self._number = 1 + max((int(Path(part).stem.rpartition("-")[2]) for part in parts), default=-1)
        self._failed = False  # a photo of an earlier run
        self.done = Done(self._read_sources(parts, retry_failed)) if parts else Done()
        """What the output has already."""

    def write(self, chunk: Chunk) -> None:
        """Add rows; they are written when they fill a part.

        Raises:
            OutputError: If a part cannot be written.
        """
        self._waiting.append(chunk)
        if sum(len(one.photos) for one in self._waiting) >= self._part_photos:
            self._flush()

    def files(self) -> tuple[str, ...]:
        """Return the files, or the folders, of both tables."""
        if not self._suffix:
            folder = self._target.rstrip("/")
            return (f"{folder}/faces", f"{folder}/photos")
        path = Path(self._target)
        kind = "clips" if self._tables.clips else "photos"
        return (self._target, str(path.with_name(f"{path.stem}-{kind}{path.suffix}")))

    def close(self, *, ended: bool, failed: bool) -> None:
        """Write the last part; for a file, join the parts, and remove them if nothing is left to be done.

        ``ended`` says that the inputs came to their end, ``failed`` that photos of this run failed.

        Raises:
            OutputError: If a file cannot be written.
        """
        with self._held:
            self._close(ended=ended, failed=failed)

    def _close(self, *, ended: bool, failed: bool) -> None:
        if self._waiting or (ended and not self._parts("photos")):
            self._flush()
        if not self._suffix or not self._parts("photos"):
            return
        for name, schema, file in zip(
            ("faces", "photos"), (self._tables.faces, self._tables.photos), self.files(), strict=True
        ):
            with replacing(file) as temporary:
                _WRITERS[self._suffix](temporary, schema, self._joined(name))
        if ended and not failed and not self._failed:
            self._held.close()  # before its file goes
            shutil.rmtree(self._root)

    def _flush(self) -> None:
        name = f"part-{self._number:05d}.parquet"
        # The photos come last: a part of faces without them is not done, and is replaced.
        faces = [one.faces for one in self._waiting] or [self._tables.faces.empty_table()]
        photos = [one.photos for one in self._waiting] or [self._tables.photos.empty_table()]
        self._put(f"faces/{name}", pa.concat_tables(faces))
        self._put(f"photos/{name}", pa.concat_tables(photos))
        self._number += 1
        self._waiting = []

    def _put(self, name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        path = f"{self._root}/{name}"
        if self._local:
            write_bytes(path, sink.getvalue().to_pybytes())
            return
        with output_errors(path):  # object stores show a file when it is complete
            self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._system.pipe_file(path, sink.getvalue().to_pybytes())

    def _parts(self, name: str) -> list[str]:
        # Not by a pattern: the name of the output may contain wildcards itself.
        self._system.invalidate_cache()
        try:
            files = self._system.ls(f"{self._root}/{name}", detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(file for file in files if _PART.fullmatch(file.rpartition("/")[2]))

    def _read(self, part: str) -> pa.Table:
        try:
            with self._system.open(part, "rb") as stream:
                return pq.read_table(stream)
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"cannot read {part}, a part of the output: {error}") from error

    def _joined(self, name: str) -> Iterator[pa.Table]:
        """Yield the rows of the parts in tables of at least :data:`_GROUP_ROWS` rows."""
        waiting: list[pa.Table] = []
        numbers = {part.rpartition("/")[2] for part in self._parts("photos")}
        for part in self._parts(name):
            if part.rpartition("/")[2] in numbers:
                waiting.append(self._read(part))
            if sum(map(len, waiting)) >= _GROUP_ROWS:
                yield pa.concat_tables(waiting)
                waiting = []
        if waiting:
            yield pa.concat_tables(waiting)

    def _read_sources(self, parts: list[str], retry_failed: bool) -> Iterator[str]:
        """Yield the sources of the parts; rows that are to be done again are removed from them."""
        for part in parts:
            table = self._read(part)
            self._check(part, table.schema)
            # A failure without a source is that of a name, which is looked up again.
            again = pc.is_null(table["source"])
            if retry_failed:
                again = pc.or_(again, pc.equal(table["status"], UNREADABLE))
            if pc.any(again).as_py():
                table = table.filter(pc.invert(again))
                self._put(f"photos/{part.rpartition('/')[2]}", table)
            self._failed |= bool(pc.any(pc.equal(table["status"], UNREADABLE)).as_py())
            yield from table["source"].to_pylist()

    def _check(self, part: str, schema: pa.Schema) -> None:
        """Refuse a part that was made with other settings."""
        wanted = self._tables.photos
        if schema.equals(wanted, check_metadata=True):
            return
        facts, own = (json.loads((s.metadata or {}).get(METADATA, b"{}")) for s in (schema, wanted))
        differ = [name for name in {**own, **facts} if facts.get(name) != own.get(name)]
        what = "; ".join(f"{name} {facts.get(name)!r} in place of {own.get(name)!r}" for name in differ)
        raise OutputError(
            f"{part} was made with {what or f'the columns {schema.names} in place of {wanted.names}'}; "
            "continue with the same settings, or choose another name"
        )


def _digest(source: str) -> int:
    return int.from_bytes(hashlib.blake2b(source.encode(), digest_size=8).digest())


def _write_parquet(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def _write_csv(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    with pyarrow.csv.CSVWriter(path, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _write_jsonl(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:  # noqa: ARG001
    with path.open("w", encoding="utf-8") as stream:
        for table in tables:
            stream.writelines(
                json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in table.to_pylist()
            )


_WRITERS: dict[str, Callable[[Path, pa.Schema, Iterator[pa.Table]], Any]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
}
