"""``ferkit predict``: the expressions of the faces in photos."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from ferkit.cli.common import (
    JsonOption,
    ModelOption,
    NetworkThreadsOption,
    ProviderOption,
    TtaOption,
    as_tta_mode,
    console,
    new_app,
    remark,
)
from ferkit.cli.interrupts import stopping

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from ferkit.core.errors import FerkitError, ImageError, OutputError
    from ferkit.core.images import ImageSource
    from ferkit.core.taxonomy import Taxonomy
    from ferkit.recognize import Face, Photo, Recognizer, Unreadable
    from ferkit.recognize.drawing import AnnotatedNames

app = new_app()

_Results: TypeAlias = (
    "Iterator[tuple[Photo | Unreadable, dict[str, str | None]]]"  # with what JSON tells besides
)
_LABELS_WITH_DECIMALS = 7  # more columns than these have no room for them
_NAMES_AHEAD = 100  # looked up for each photo that is read, in far less time than that takes
_SECONDS_AHEAD = 0.1  # where that is not so


class Format(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"


@app.command()
def predict(
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            help="Photos (JPEG, PNG, WebP, TIFF, BMP, GIF), folders with all below them, patterns in quotes, "
            "or - for standard input.",
            show_default=False,
        ),
    ] = None,
    files_from: Annotated[
        str | None,
        typer.Option(
            help="A file with the paths of photos, one a line or between NUL bytes; - for standard input.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = None,
    output_format: Annotated[
        Format | None, typer.Option("--format", "-f", help="How to print.", show_default="table")
    ] = None,
    as_json: JsonOption = False,
    annotate: Annotated[
        Path | None,
        typer.Option(help="Folder for copies of the photos with the faces drawn in.", show_default=False),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Show in the annotated copies which parts of a face speak for its label."
        ),
    ] = False,
    detector: Annotated[
        str,
        typer.Option(help="centerface, yunet:FILE, or none (each photo is a face crop already)."),
    ] = "centerface",
    min_face: Annotated[
        float | None,
        typer.Option(
            min=5,
            help="Height in pixels of the smallest face wanted; smaller values search longer.",
            show_default="search for 48, keep what turns up",
        ),
    ] = None,
    min_confidence: Annotated[
        float, typer.Option(min=0, max=1, help="Call a face uncertain below this probability.")
    ] = 0.0,
    taxonomy: Annotated[
        str | None,
        typer.Option(
            help="Label set to answer in, of those the model has.", show_default="the model's first"
        ),
    ] = None,
    tta: TtaOption = "none",
    provider: ProviderOption = None,
    threads: NetworkThreadsOption = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse larger photos.", show_default="89 million")
    ] = None,
) -> None:
    """Find the faces in photos and read their expressions.

    Faces come with box, score, landmarks, quality, label and all probabilities. A photo without a face is no
    error. A photo that cannot be read, or of which no annotated copy can be made, is one: it is named on
    stderr, the others are read all the same, and the exit status is 1. Ctrl-C ends early: what was read until
    then is printed.
    """
    if as_json and output_format not in (None, Format.JSON):
        raise typer.BadParameter(f"it contradicts --format {output_format}", param_hint="--json")
    kind = Format.JSON if as_json else output_format or Format.TABLE
    if explain and annotate is None:
        raise typer.BadParameter(
            "it draws into the annotated copies; add --annotate FOLDER", param_hint="--explain"
        )
    from ferkit.batch.sources import STDIN, find_photos
    from ferkit.core.errors import ModelFileError
    from ferkit.core.images import DEFAULT_MAX_PIXELS
    from ferkit.recognize import Recognizer

    photos = photos or []
    if not photos and files_from is None:
        raise typer.BadParameter("name photos, folders or patterns, or a list of them by --files-from")
    if STDIN in photos and files_from == STDIN:
        raise typer.BadParameter(
            "the standard input is a photo already, by the argument -", param_hint="--files-from"
        )

    max_pixels = DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels
    recognizer = Recognizer(
        model,
        detector=detector,
        min_face=min_face,
        min_confidence=min_confidence,
        taxonomy=taxonomy,
        tta=as_tta_mode(tta),
        providers=provider,
        threads=threads,
        max_pixels=max_pixels,
    )
    if explain and not recognizer.info.head(recognizer.taxonomy.id).cam:
        raise ModelFileError(
            f"model {recognizer.info.name!r} has no class activation maps for {recognizer.taxonomy.id!r}, so "
            "there is nothing to --explain; networks that end in global average pooling have them"
        )
    # What Pillow says of damaged files would come between our lines; what cannot be read is an error of ours.
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    listed = [] if files_from is None else _list(files_from)
    passed_over: dict[str, int] = {}
    stop = threading.Event()
    names = find_photos(photos, listed=listed, leave_out=annotate, passed_over=passed_over, stop=stop)
    copies = None
    if annotate is not None:
        from ferkit.recognize.drawing import AnnotatedNames

        # All names first: a copy must not take the name of a photo that is still to be read.
        found = list(names)
        names = iter(found)
        copies = AnnotatedNames(annotate, (name for name in found if isinstance(name, str)))
    # Before Ctrl-C is taken to mean the end of the list: nobody knows when it comes.
    piped = _standard_input() if STDIN in photos else None
    ahead = _Ahead(names, _NAMES_AHEAD if copies is None else sys.maxsize, stop)
    # What is printed while photos are read would go through the bar.
    single = ahead.complete and ahead.found < 2
    hidden = single or (kind is not Format.TABLE and sys.stdout.isatty())
    with stopping(stop) as interrupts:
        with _progress(ahead, hidden=hidden) as advance:
            readable = _Readable(recognizer, ahead, piped, stop, advance)
            results: _Results = ((result, {}) for result in readable)
            if copies is not None:
                results = _annotated(recognizer, readable, copies, explain=explain, max_pixels=max_pixels)
            if kind is Format.TABLE:
                table = _table(recognizer, results, readable.names)
            else:
                _write(kind, results, recognizer.taxonomy)
        if kind is Format.TABLE:
            console().print(table)
    if passed_over:
        kinds = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
        remark(
            "photos of kinds that ferkit does not read were passed over: "
            f"{', '.join(f'{number} {suffix}' for suffix, number in kinds)}; convert them to JPEG or PNG"
        )
    if readable.failures and not single:
        remark(f"{readable.failures} of {ahead.total} photos could not be read")
    if readable.uncopied and not single:
        remark(f"{readable.uncopied} of {ahead.total} photos have no annotated copy")
    if interrupts.received is not None:
        remark(f"interrupted; {readable.done} of {ahead.total} photos were looked at")
        raise typer.Exit(128 + interrupts.received)
    if readable.failures or readable.uncopied:
        raise typer.Exit(1)


def _standard_input() -> bytes | ImageError:
    from ferkit.core.errors import ImageError
    from ferkit.core.images import read_stream

    try:
        return read_stream(sys.stdin.buffer, "standard input")
    except ImageError as error:
        return error


def _list(name: str) -> list[str]:
    """Return the paths that a list of photos holds.

    Raises:
        FerkitError: If it cannot be read, or holds none.
    """
    from ferkit.batch.sources import STDIN, read_list
    from ferkit.core.errors import FerkitError

    shown = "standard input" if name == STDIN else name
    try:
        content = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
    except OSError as error:
        raise FerkitError(f"cannot read the list of photos, {shown}: {error.strerror or error}") from error
    try:
        paths = read_list(content)
    except UnicodeDecodeError as error:
        raise FerkitError(
            f"cannot read the list of photos, {shown}: it is no valid {error.encoding}; write it as UTF-8"
        ) from error
    if not paths:
        raise FerkitError(f"{shown} lists no photo; a path a line was expected")
    return paths


class _Ahead:
    """Names of photos in their order, looked up a little faster than they are taken.

    So the first photo does not wait for the last name, and soon it is known all the same how many there are.

    Args:
        names: All of them.
        pace: How many are looked up at first, and then for each that is taken, but for no longer than
            ``_SECONDS_AHEAD``.
        stop: Set when the names may have ended early.

    Attributes:
        found: Names that were looked up until now.
        complete: Whether these are all.
    """

    def __init__(self, names: Iterator[str | ImageError], pace: int, stop: threading.Event) -> None:
        self._names = names
        self._pace = pace
        self._stop = stop
        self._waiting: deque[str | ImageError] = deque()
        self.found = 0
        self.complete = False
        self._look(math.inf)

    def __iter__(self) -> Iterator[str | ImageError]:
        while self._waiting:
            yield self._waiting.popleft()
            self._look(_SECONDS_AHEAD)

    @property
    def total(self) -> str:
        """How many photos there are, in words."""
        return str(self.found) if self.complete else f"at least {self.found}"

    def _look(self, seconds: float) -> None:
        if self.complete:
            return
        until = time.monotonic() + seconds
        for _ in range(self._pace):
            name = next(self._names, None)
            if name is None:
                self.complete = not self._stop.is_set()
                return
            self._waiting.append(name)
            self.found += 1
            if time.monotonic() > until:  # a slow disk: the next photo has waited long enough
                return


@contextlib.contextmanager
def _progress(ahead: _Ahead, *, hidden: bool) -> Iterator[Callable[[], None]]:
    """Yield what moves a bar on stderr by a photo; it moves nothing where that is no terminal."""
    screen = console(stderr=True)
    if hidden or not screen.is_terminal:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (MofNCompleteColumn(), TextColumn("photos"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=None)
        yield lambda: bar.update(task, advance=1, total=ahead.found if ahead.complete else None)


def _write(kind: Format, results: _Results, taxonomy: Taxonomy) -> None:
    from ferkit.recognize import Unreadable
    from ferkit.recognize.sinks import make_writer

    with make_writer(kind, sys.stdout, taxonomy) as writer:
        for result, besides in results:
            if isinstance(result, Unreadable):
                writer.write_unreadable(result)
            else:
                writer.write(result, besides)
            writer.flush()


class _Readable:
    """What is found in photos, in order; it prints and counts those that cannot be read or have no copy.

    Args:
        recognizer: Reads them.
        found: Photos, and errors of names that mean none.
        piped: What came from standard input, if that is one of the photos.
        stop: Set when no more photos are to be taken.
        advance: Called after each.

    Attributes:
        names: The photos that were taken until now.
        done: How many entries of ``found`` were.
        failures: How many of these could not be read.
        uncopied: How many could, but have no annotated copy.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        found: Iterable[str | ImageError],
        piped: bytes | ImageError | None,
        stop: threading.Event,
        advance: Callable[[], None],
    ) -> None:
        self._recognizer = recognizer
        self._found = found
        self._piped = piped
        self._stop = stop
        self._advance = advance
        self.names: list[str] = []
        self.done = 0
        self.failures = 0
        self.uncopied = 0

    def __iter__(self) -> Iterator[Photo | Unreadable]:
        from ferkit.recognize import Unreadable

        # Photos whose faces are not read yet, and between them what is none, with the error.
        taken: deque[tuple[str | None, ImageError | None]] = deque()
        for result in self._recognizer.predict_each(self._sources(taken)):
            yield from self._fail_first(taken)
            name, _ = taken.popleft()
            if isinstance(result, Unreadable):
                yield self._fail(Unreadable(name, result.error))
            else:
                yield replace(result, source=name)
        yield from self._fail_first(taken)

    def source(self, item: str | ImageError) -> str | bytes:
        """Return what is to be read for a name: the name itself, or what came from standard input.

        Raises:
            ImageError: If the name means no photo, or nothing came.
        """
        from ferkit.batch.sources import STDIN

        source = self._piped if item == STDIN and self._piped is not None else item
        if isinstance(source, (str, bytes)):
            return source
        raise source

    def leave_uncopied(self, name: str, error: FerkitError) -> None:
        """Say and count that a photo has no annotated copy."""
        self.uncopied += 1
        remark(f"error: no annotated copy of {name}: {error}")

    def _sources(self, taken: deque[tuple[str | None, ImageError | None]]) -> Iterator[ImageSource]:
        from ferkit.core.errors import ImageError

        for item in self._found:
            if self._stop.is_set():
                return
            name = item if isinstance(item, str) else None
            if name is not None:
                self.names.append(name)
            try:
                source = self.source(item)
            except ImageError as error:
                taken.append((name, error))
            else:
                taken.append((name, None))
                yield source
            self.done += 1
            self._advance()

    def _fail_first(self, taken: deque[tuple[str | None, ImageError | None]]) -> Iterator[Unreadable]:
        """Say, count and pass on what stands before the next photo that is read."""
        from ferkit.recognize import Unreadable

        while taken and (error := taken[0][1]) is not None:
            name, _ = taken.popleft()
            yield self._fail(Unreadable(name, error))

    def _fail(self, unreadable: Unreadable) -> Unreadable:
        self.failures += 1
        remark(f"error: {unreadable.error}")
        return unreadable


def _annotated(
    recognizer: Recognizer, results: _Readable, names: AnnotatedNames, *, explain: bool, max_pixels: int
) -> _Results:
    """Write the annotated copy of each photo, and pass the result on with the copy's path, if it has one.

    Raises:
        OutputError: If there will be no other copy either, as where the disk is full.
    """
    from ferkit.batch.sources import STDIN
    from ferkit.core.errors import ImageError, OutputError
    from ferkit.core.files import write_bytes
    from ferkit.core.images import encode_image
    from ferkit.recognize import Unreadable
    from ferkit.recognize.drawing import sign, signature

    for photo in results:
        if isinstance(photo, Unreadable):
            yield photo, {}
            continue
        name = photo.source or STDIN
        written = None
        try:
            # Read once more: to keep pictures until their faces are read would take memory by the photo.
            drawn = _drawn(recognizer, results.source(name), photo, explain=explain, max_pixels=max_pixels)
            signed = signature(results.source(name))
            target = names.name("stdin" if name == STDIN else name, signed)
            write_bytes(target, sign(encode_image(drawn, target.suffix), signed))
        except ImageError as error:
            results.leave_uncopied(name, error)
        except OutputError as error:
            if not _is_of_the_name(error):
                raise
            results.leave_uncopied(name, error)
        else:
            remark(f"wrote {target}")
            written = str(target)
        yield photo, {"annotated": written}


def _drawn(
    recognizer: Recognizer, source: ImageSource, photo: Photo, *, explain: bool, max_pixels: int
) -> NDArray[np.uint8]:
    """Return the photo with its faces drawn in: uint8 ``[H, W, 3]``, RGB.

    Raises:
        ImageError: If it is no longer the photo whose faces were read.
    """
    from ferkit.core.errors import ImageError
    from ferkit.core.images import load_image
    from ferkit.recognize.drawing import draw

    rgb = load_image(source, max_pixels=max_pixels)
    if rgb.shape[:2] != (photo.height, photo.width):
        raise ImageError(
            f"it was {photo.width} x {photo.height} pixels large when its faces were read, and is "
            f"{rgb.shape[1]} x {rgb.shape[0]} now; read it again"
        )
    return draw(rgb, photo, recognizer.explain(rgb, photo) if explain else ())


def _is_of_the_name(error: OutputError) -> bool:
    """Tell whether a file cannot be written because of its name alone: too long, or with refused letters."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)


def _table(recognizer: Recognizer, results: _Results, names: list[str]) -> Table:
    """Return the table that is printed, when all is read: the widths of its columns depend on every row.

    Args:
        recognizer: Its label set has the columns.
        results: What is shown; the unreadable ones are not.
        names: The photos, complete after the last result.
    """
    from rich import box
    from rich.table import Table

    from ferkit.batch.sources import STDIN
    from ferkit.recognize import Unreadable

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    digits = 1 if len(recognizer.taxonomy) <= _LABELS_WITH_DECIMALS else 0
    table.add_column("photo", overflow="fold")
    table.add_column("box", no_wrap=True)
    table.add_column("face", justify="right")
    table.add_column("expression", no_wrap=True)
    for label in recognizer.taxonomy.labels:
        table.add_column(label, justify="right", overflow="fold")
    shown = [
        (photo.source or STDIN, [_row(face, digits) for face in photo.faces] or [["no face"]])
        for photo, _ in results
        if not isinstance(photo, Unreadable)
    ]
    folder = _common_folder([name for name in names if name != STDIN])
    for name, rows in shown:
        short = name if name == STDIN or folder is None else os.path.relpath(Path(name).absolute(), folder)
        for number, row in enumerate(rows):
            table.add_row(short if number == 0 else "", *row)
    return table


def _row(face: Face, digits: int) -> list[str]:
    left, top, right, bottom = (round(value) for value in face.box)
    flags = face.quality.flags if face.quality else ()
    return [
        f"{left},{top} {right - left}x{bottom - top}",
        f"{face.score:.0%}",
        "\n".join([f"{face.label} {face.confidence:.0%}", *flags]),
        *(f"{value:.{digits}%}" for value in face.probabilities.values()),
    ]


def _common_folder(files: list[str]) -> str | None:
    """Return the folder that all files lie in or below; None for no files, and for files of two drives."""
    try:
        return os.path.commonpath([Path(name).absolute().parent for name in files])
    except ValueError:
        return None
