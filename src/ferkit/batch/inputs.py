"""What a batch reads: photos of folders, patterns, lists and URIs, tar shards, and tables."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from ferkit.batch.sources import find_photos, is_photo
from ferkit.batch.tables import Kept
from ferkit.core.errors import FerkitError, ImageError
from ferkit.core.files import is_hidden
from ferkit.core.images import SUFFIXES, is_url, read_stream
from ferkit.core.runtime import first_line

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CLIP_SUFFIXES = (
    *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp"),
)
"""Suffixes of the files that count as clips in folders and patterns."""

TASK_PHOTOS = 32
"""Photos of a task, where they are files."""

_TARS = (".tar", ".tar.gz", ".tgz")
_TABLES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json"}
_PATH_COLUMNS = ("path", "file", "filename", "file_name", "source", "uri", "image", "photo")
_ARROW_SCHEMES = ("s3", "gs")
_SAMPLE_BYTES = 64 << 20  # of a tar that are in memory, or one file
_ROWS = 64  # of a table with bytes that are read at a time


@dataclass(frozen=True, slots=True)
class Item:
    """A photo or a clip to recognize."""

    source: str | None  # its name in the tables; None if there is none, only an error
    # A path, the bytes, a file that is read later, or the reason why there is none.
    photo: str | bytes | RemoteFile | ImageError
    kept: Kept = ()  # values of the columns to keep


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file by its URI, which is opened when it is read, by the thread that needs it."""

    uri: str

    def read(self, size: int = 1 << 30, /) -> bytes:  # PyArrow's files take no -1
        """Return the first bytes of the file.

        Raises:
            ImageError: If it cannot be read.
        """
        try:
            with open_uri(self.uri) as stream:
                return bytes(stream.read(size))
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot read {self.uri}: {error}") from error


@dataclass(frozen=True, slots=True)
class PhotoList:
    """A task: photos by their names."""

    items: tuple[Item, ...]

    def read(self, is_done: Callable[[str], bool]) -> Iterator[Item]:  # noqa: ARG002
        """Yield the photos."""
        yield from self.items


@dataclass(frozen=True, slots=True)
class TarShard:
    """A task: the photos in a tar file, in the layout of WebDataset.

    The source of a photo is ``shard.tar/name.jpg``. Files that share their name up to the first dot are a
    sample; values to keep come from its ``.json``, or are the text of the file with that suffix (``cls``). A
    sample of more than 64 MiB is cut.
    """

    name: str
    keep: tuple[str, ...]

    def read(self, is_done: Callable[[str], bool]) -> Iterator[Item]:
        """Yield the photos that are not done, and an error where the file is damaged."""
        try:
            with open_uri(self.name) as stream, tarfile.open(fileobj=stream, mode="r|*") as tar:
                for sample in _samples(tar, whole=bool(self.keep)):
                    fields = _fields(sample) if self.keep else {}
                    kept = tuple(map(fields.get, self.keep))
                    for name, content in sample:
                        source = f"{self.name}/{name}"
                        if is_photo(name) and not is_done(source):
                            yield Item(source, content, kept)
        except (OSError, EOFError, tarfile.TarError) as error:
            if not is_done(self.name):
                yield Item(self.name, ImageError(f"cannot read the rest of {self.name}: {error}"))


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A task: a row group of a Parquet file whose column holds the bytes of photos.

    The column is binary, or a struct of ``bytes`` and ``path`` as in Hugging Face's data sets. The source of
    a photo is ``file.parquet#row``, counted from 0.
    """

    name: str
    column: str
    keep: tuple[str, ...]
    group: int
    first_row: int
    count: int

    def read(self, is_done: Callable[[str], bool]) -> Iterator[Item]:
        """Yield the photos that are not done, and an error where the file is damaged."""
        row = self.first_row
        try:
            with open_uri(self.name) as stream, pq.ParquetFile(stream) as file:
                if self.column not in file.schema_arrow.names:
                    raise OSError(f"it has no column {self.column!r}")
                columns = list(dict.fromkeys((self.column, *self.keep)))
                for rows in file.iter_batches(_ROWS, row_groups=[self.group], columns=columns):
                    for values in rows.to_pylist():
                        source = f"{self.name}#{row}"
                        row += 1
                        if not is_done(source):
                            photo = _photo_in(values[self.column])
                            yield Item(source, photo, tuple(map(values.get, self.keep)))
        except (OSError, pa.ArrowException) as error:
            if not is_done(source := f"{self.name}#{row}"):
                yield Item(source, ImageError(f"cannot read the rest of {self.name}: {error}"))


class Task(Protocol):
    """A part of the inputs that one worker reads."""

    def read(self, is_done: Callable[[str], bool]) -> Iterator[Item]:
        """Yield the photos that are not done."""
        ...


class Inputs:
    """The inputs of a batch, as a user names them.

    Args:
        names: Photos, folders, patterns, tar files (``.tar``, ``.tar.gz``), tables (``.parquet``, ``.csv``,
            ``.jsonl``); paths or URIs.
        listed: Photos by path or URI.
        column: The tables' column with the photos, or with their paths; by default the first one of bytes, or
            else ``path``, ``file`` and the like.
        keep: Columns of the tables, or fields of the samples of tar files, to carry into the output.
        clips: Whether clips are meant, not photos.
        passed_over: A dictionary in which photos of unsupported formats are counted by suffix.

    Raises:
        FerkitError: If a table cannot be read or has no such column, or if no input has columns to keep.
    """

    def __init__(
        self,
        names: Iterable[str],
        listed: Iterable[str] = (),
        *,
        column: str | None = None,
        keep: Sequence[str] = (),
        clips: bool = False,
        passed_over: dict[str, int] | None = None,
    ) -> None:
        self._names = [_local(name) for name in dict.fromkeys(names)]
        self._listed = [_local(name) for name in dict.fromkeys(listed)]
        self._column = column
        self._keep = tuple(keep)
        self._suffixes = CLIP_SUFFIXES if clips else SUFFIXES
        self._per_task = 1 if clips else TASK_PHOTOS
        self._passed_over = {} if passed_over is None else passed_over
        self.keep: dict[str, pa.DataType] = {}
        """The columns to keep, with their types."""
        schemas = [_open_table(name).schema for name in self._names if _suffix(name) in _TABLES]
        tars = any(_suffix(name) in _TARS for name in self._names)
        if tars and clips:
            raise FerkitError("clips are read from files, not from tar files; unpack them")
        for schema in schemas:
            _photo_column(schema, column)
        for name in self._keep:
            if not any(name in schema.names for schema in schemas) and not tars:
                raise FerkitError(
                    f"no input has a column {name!r} to keep; it comes from a table"
                    + "".join(f" (the columns are {', '.join(schema.names)})" for schema in schemas[:1])
                    + " or from tar files"
                )
            kinds = {schema.field(name).type for schema in schemas if name in schema.names}
            # Values of tar files are text or JSON.
            self.keep[name] = kinds.pop() if len(kinds) == 1 and not tars else pa.string()

    def tasks(self, is_done: Callable[[str], bool], stop: threading.Event | None = None) -> Iterator[Task]:
        """Yield the inputs as tasks, in order, while they are still searched for.

        Photos by name that are in the output already (``is_done``) are left out. The search ends soon after
        ``stop`` is set.
        """
        stop = threading.Event() if stop is None else stop
        waiting: list[Item] = []
        for found in self._find(stop, self._passed_over):
            if isinstance(found, Item):
                if found.source is None or not is_done(found.source):
                    waiting.append(found)
                if len(waiting) < self._per_task:
                    continue
            if waiting:
                yield PhotoList(tuple(waiting))
                waiting = []
            if not isinstance(found, Item):
                yield found
        if waiting:
            yield PhotoList(tuple(waiting))

    def count(self, stop: threading.Event) -> int | None:
        """Return the number of photos, without reading them; None if tar files are among the inputs."""
        number = 0
        for found in self._find(stop, {}):
            if isinstance(found, TarShard):
                return None
            number += 1 if isinstance(found, Item) else found.count
        return number

    def _find(
        self, stop: threading.Event, passed_over: dict[str, int]
    ) -> Iterator[Item | TarShard | RowGroup]:
        """Yield photos by name, and shards."""
        files: list[str] = []
        for name in self._names:
            suffix = _suffix(name)
            if not suffix and not is_uri(name):
                files.append(name)
                continue
            yield from self._in_files(files, stop, passed_over)
            files = []
            if suffix in _TABLES:
                yield from self._in_table(name)
            elif suffix:
                yield from self._in_tars(name)
            else:
                yield from self._in_uri(name, stop)
        yield from self._in_files(files, stop, passed_over)
        for name in self._listed:
            yield _item(name)

    def _in_files(
        self, names: list[str], stop: threading.Event, passed_over: dict[str, int]
    ) -> Iterator[Item]:
        found = find_photos(names, passed_over=passed_over, stop=stop, suffixes=self._suffixes)
        for name in found if names else ():
            yield Item(None, name) if isinstance(name, ImageError) else _item(name)

    def _in_tars(self, name: str) -> Iterator[Item | TarShard]:
        try:
            tars = _expand(name)
        except OSError as error:
            yield Item(None, ImageError(f"cannot read {name}: {error}"))
            return
        if not tars:
            yield Item(None, ImageError(f"no tar file matches {name}"))
        yield from (TarShard(one, self._keep) for one in tars)

    def _in_uri(self, name: str, stop: threading.Event) -> Iterator[Item]:
        found = False
        refused: list[OSError] = []
        try:
            for one in _expand(name) if glob.has_magic(name) else _walk(name, refused):
                if stop.is_set():
                    return
                if one == name or is_photo(one, self._suffixes):
                    found = True
                    yield _item(one)
        except OSError as error:
            refused.append(error)
        for why in refused:
            yield Item(None, ImageError(f"cannot read all of {name}: {why}"))
        if not found and not refused:
            yield Item(None, ImageError(f"nothing found at {name} ({', '.join(self._suffixes)})"))

    def _in_table(self, name: str) -> Iterator[Item | RowGroup]:
        ragged: list[str] = []
        table = _open_table(name, ragged)
        ragged.clear()  # its first rows are read again
        column = _photo_column(table.schema, self._column)
        if _holds_bytes(table.schema.field(column).type):
            for path, file in zip(_expand(name), table.get_fragments(), strict=True):
                yield from _row_groups(path, file, column, self._keep)
            return
        columns = [one for one in table.schema.names if one == column or one in self._keep]
        try:
            for rows in table.to_batches(columns=columns):
                for values in rows.to_pylist():
                    path, kept = values[column], tuple(map(values.get, self._keep))
                    if path is None:
                        yield Item(None, ImageError(f"{name} has a row without a path"), kept)
                    else:
                        yield _item(_local(path), kept)
        except (OSError, pa.ArrowException) as error:
            yield Item(None, ImageError(f"cannot read all of {name}: {first_line(error)}"))
        if ragged:
            yield Item(None, ImageError(f"{name} has rows with too few or too many columns: {ragged[0]}"))


def open_uri(name: str) -> Any:
    """Open a file for reading, by its path or URI."""
    if not is_uri(name):
        return Path(name).open("rb")
    system, path = locate(name)
    return system.open(path, "rb")


def is_uri(name: str) -> bool:
    """Return whether a name is a URI of storage; files are not fetched from web servers."""
    return is_url(name) and not name.startswith(("http:", "https:"))


def _local(name: str) -> str:
    """Return the path of a ``file://`` URI; other names as they are."""
    return url2pathname(urlsplit(name).path) if name.startswith("file://") else name


def locate(uri: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a URI, and the path in it.

    S3 and Google's storage are PyArrow's, the others those of fsspec and its extensions.
    """
    scheme, _, path = uri.partition("://")
    if scheme in _ARROW_SCHEMES:
        return _arrow_file_system(scheme, path.partition("/")[0]), path
    try:
        system, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise FerkitError(f"cannot open {uri}: {error}") from error
    return system, path


@lru_cache
def _arrow_file_system(scheme: str, bucket: str) -> AbstractFileSystem:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem

    return ArrowFSWrapper(FileSystem.from_uri(f"{scheme}://{bucket}")[0])


def _expand(name: str) -> list[str]:
    """Return the files that a path, a URI or a pattern names, sorted."""
    if not glob.has_magic(name) or os.path.exists(name):  # noqa: PTH110
        return [name]
    if not is_uri(name):
        return sorted(glob.glob(name, recursive=True))  # noqa: PTH207
    system, path = locate(name)
    return [_uri(name, one) for one in sorted(system.glob(path))]


def _walk(uri: str, refused: list[OSError]) -> Iterator[str]:
    """Yield the files in a folder and below it, or the file itself.

    The errors of folders that cannot be listed are added to ``refused``.
    """
    system, path = locate(uri)
    if system.isfile(path):
        yield uri
        return
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        try:
            # Not system.walk, which passes on_error to the first folder only (fsspec 2026.9).
            listing = system.ls(folder, detail=True)
        except FileNotFoundError:
            continue
        except OSError as error:
            refused.append(error)
            continue
        found = sorted((info["name"].rstrip("/"), info["type"] == "directory") for info in listing)
        # Some file systems list the folder itself.
        found = [one for one in found if one[0].strip("/") != folder.strip("/")]
        shown = [one for one in found if not is_hidden(one[0].rpartition("/")[2])]
        yield from (_uri(uri, name) for name, is_folder in shown if not is_folder)
        waiting += [name for name, is_folder in reversed(shown) if is_folder]


def _uri(like: str, path: str) -> str:
    return f"{like.partition('://')[0]}://{path.lstrip('/')}"


def _suffix(name: str) -> str:
    """Return the suffix of a tar file or a table; empty for other names, and for folders."""
    found = next((one for one in (*_TARS, *_TABLES) if name.lower().endswith(one)), "")
    return "" if found and not is_uri(name) and os.path.isdir(name) else found  # noqa: PTH112


def _item(name: str, kept: Kept = ()) -> Item:
    # Absolute, since a worker on a cluster has another working directory.
    photo = RemoteFile(name) if is_uri(name) else name if is_url(name) else os.path.abspath(name)  # noqa: PTH100
    return Item(name, photo, kept)


def _row_groups(path: str, file: Any, column: str, keep: tuple[str, ...]) -> Iterator[Item | RowGroup]:
    """Yield the row groups of a Parquet file, which is a fragment of a table."""
    row = 0
    try:
        for group in file.split_by_row_group():
            (info,) = group.row_groups
            yield RowGroup(path, column, keep, info.id, row, info.num_rows)
            row += info.num_rows
    except (OSError, pa.ArrowException) as error:
        yield Item(path, ImageError(f"cannot read {path}: {first_line(error)}"))


def _open_table(name: str, ragged: list[str] | None = None) -> pads.Dataset:
    """Return the table of a file or of all files that match a pattern.

    Rows of a CSV with another number of columns than its header are skipped; the text of the first one is
    added to ``ragged``.

    Raises:
        FerkitError: If there is none, or it cannot be read.
    """
    files = _expand(name)
    if not files:
        raise FerkitError(f"no table matches {name}")
    try:
        system, paths = (
            (None, files) if not is_uri(name) else (locate(name)[0], [locate(f)[1] for f in files])
        )
        kind = _TABLES[_suffix(name)]
        return pads.dataset(paths, format=_csv_format(ragged) if kind == "csv" else kind, filesystem=system)
    except (OSError, pa.ArrowException) as error:
        raise FerkitError(f"cannot read the table {name}: {first_line(error)}") from error


def _csv_format(ragged: list[str] | None) -> pads.CsvFileFormat:
    def skip(row: Any) -> str:
        if ragged is not None and not ragged:
            ragged.append(row.text)
        return "skip"

    return pads.CsvFileFormat(parse_options=pyarrow.csv.ParseOptions(invalid_row_handler=skip))


def _photo_column(schema: pa.Schema, chosen: str | None) -> str:
    """Return the column with the photos, or with their paths.

    Raises:
        FerkitError: If there is none.
    """
    kinds = {field.name: field.type for field in schema}
    if chosen is None:
        holds = [name for name, kind in kinds.items() if _holds_bytes(kind)]
        named = [name for name in _PATH_COLUMNS if name in kinds and _is_text(kinds[name])]
        chosen = next(iter(holds + named), None)
    kind = kinds.get(chosen, pa.null())
    if chosen is None or not (_holds_bytes(kind) or _is_text(kind)):
        raise FerkitError(
            f"a table needs a column with photos or their paths; name it with --column. Received: {chosen!r} "
            f"of {', '.join(f'{name} ({kind})' for name, kind in kinds.items())}"
        )
    return chosen


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _photo_in(value: Any) -> str | bytes | RemoteFile | ImageError:
    """Return the photo of a cell: bytes, or a struct with bytes or a path."""
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            return _item(value["path"]).photo
        value = value.get("bytes")
    return ImageError("the row has no photo") if value is None else value


def _samples(tar: tarfile.TarFile, *, whole: bool) -> Iterator[list[tuple[str, bytes | ImageError]]]:
    """Yield the files of a tar that share their name up to the first dot after the folder.

    Unless samples are to be ``whole``, yield each photo alone.
    """
    sample: list[tuple[str, bytes | ImageError]] = []
    key, size = None, 0
    for member in tar:
        if not member.isfile() or is_hidden(member.name) or not (whole or is_photo(member.name)):
            continue
        folder, _, file = member.name.rpartition("/")
        following = (folder, file.partition(".")[0] if whole else file)
        # Names with dots, such as IMG.2024.0001.jpg, are all one sample.
        if sample and (following != key or size + member.size > _SAMPLE_BYTES):
            yield sample
            sample, size = [], 0
        key, size = following, size + member.size
        content = tar.extractfile(member)
        assert content is not None
        try:
            sample.append((member.name, read_stream(content, member.name)))
        except ImageError as error:  # empty, or too large
            sample.append((member.name, error))
    if sample:
        yield sample


def _fields(sample: list[tuple[str, bytes | ImageError]]) -> dict[str, str]:
    """Return the text of a sample's files by suffix, and the values of its JSON."""
    fields: dict[str, str] = {}
    for name, content in sample:
        suffix = name.rpartition("/")[2].partition(".")[2].lower()
        if isinstance(content, ImageError) or is_photo(name):
            continue
        text = content.decode(errors="replace").strip()
        fields[suffix] = text
        if suffix == "json":
            with contextlib.suppress(ValueError):
                values = json.loads(text)
                if isinstance(values, dict):
                    fields |= {
                        key: value if isinstance(value, str) else json.dumps(value)
                        for key, value in values.items()
                    }
    return fields
