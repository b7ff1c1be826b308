"""``ferkit predict``: the expressions of the faces in photos."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from ferkit.cli.common import (
    JsonOption,
    LooksOption,
    ModelOption,
    NetworkThreadsOption,
    ProviderOption,
    as_protocol,
    console,
    new_app,
    remark,
)
from ferkit.cli.interrupts import stopping

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from ferkit.errors import FerkitError, ImageError, OutputError
    from ferkit.images import ImageSource
    from ferkit.recognize import Photo, Recognizer
    from ferkit.taxonomy import Taxonomy

app = new_app()

_Results: TypeAlias = "Iterator[tuple[Photo, dict[str, str | None]]]"  # with what JSON tells besides
_LABELS_WITH_DECIMALS = 7  # more columns than these have no room for them


class Format(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"


@app.command()
def predict(
    photos: Annotated[
        list[str],
        typer.Argument(
            help="Photos (JPEG, PNG, WebP, TIFF, BMP, GIF), folders with all below them, patterns in quotes, "
            "or - for standard input."
        ),
    ],
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
    protocol: LooksOption = "single",
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
    from ferkit.errors import ModelFileError
    from ferkit.images import DEFAULT_MAX_PIXELS
    from ferkit.recognize import Recognizer
    from ferkit.recognize.sources import STDIN, find_photos

    max_pixels = DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels
    recognizer = Recognizer(
        model,
        detector=detector,
        min_face=min_face,
        min_confidence=min_confidence,
        taxonomy=taxonomy,
        protocol=as_protocol(protocol),
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
    # All names first: a copy must not take the name of a photo that is still to be read.
    found = list(find_photos(photos, leave_out=annotate))
    # Before Ctrl-C is taken to mean the end of the list: nobody knows when it comes.
    piped = _standard_input() if STDIN in found else None
    # What is printed while photos are read would go through the bar.
    hidden = len(found) < 2 or (kind is not Format.TABLE and sys.stdout.isatty())
    with stopping() as interrupts:
        with _progress(len(found), hidden=hidden) as advance:
            readable = _Readable(recognizer, found, piped, interrupts.stop, advance)
            results: _Results = ((photo, {}) for photo in readable)
            if annotate is not None:
                results = _annotated(recognizer, readable, annotate, explain=explain, max_pixels=max_pixels)
            if kind is Format.TABLE:
                table = _table(recognizer, results, readable.names)
            else:
                _write(kind, results, recognizer.taxonomy)
        if kind is Format.TABLE:
            console().print(table)
    if readable.failures and readable.count > 1:
        remark(f"{readable.failures} of {readable.count} photos could not be read")
    if readable.uncopied and readable.count > 1:
        remark(f"{readable.uncopied} of {readable.count} photos have no annotated copy")
    if interrupts.received is not None:
        remark(f"interrupted; {readable.done} of {readable.count} photos were looked at")
        raise typer.Exit(128 + interrupts.received)
    if readable.failures or readable.uncopied:
        raise typer.Exit(1)


def _standard_input() -> bytes | ImageError:
    from ferkit.errors import ImageError
    from ferkit.images import read_stream

    try:
        return read_stream(sys.stdin.buffer, "standard input")
    except ImageError as error:
        return error


@contextlib.contextmanager
def _progress(count: int, *, hidden: bool) -> Iterator[Callable[[], None]]:
    """Yield what moves a bar on stderr by a photo; it moves nothing where that is no terminal."""
    screen = console(stderr=True)
    if hidden or not screen.is_terminal:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (MofNCompleteColumn(), TextColumn("photos"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=count)
        yield lambda: bar.advance(task)


def _write(kind: Format, results: _Results, taxonomy: Taxonomy) -> None:
    from ferkit.recognize.writers import make_writer

    with make_writer(kind, sys.stdout, taxonomy) as writer:
        for photo, besides in results:
            writer.write(photo, besides)


class _Readable:
    """The photos that can be read; it prints and counts the others, and those without an annotated copy.

    Args:
        recognizer: Reads them.
        found: Photos, and errors of names that mean none.
        piped: What came from standard input, if that is one of the photos.
        stop: Set when no more photos are to be taken.
        advance: Called after each.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        found: list[str | ImageError],
        piped: bytes | ImageError | None,
        stop: threading.Event,
        advance: Callable[[], None],
    ) -> None:
        self._recognizer = recognizer
        self._found = found
        self._piped = piped
        self._stop = stop
        self._advance = advance
        self.names = [name for name in found if isinstance(name, str)]
        self.count = len(found)
        self.done = 0
        self.failures = 0
        self.uncopied = 0

    def __iter__(self) -> Iterator[Photo]:
        from ferkit.recognize import Unreadable

        taken: deque[str] = deque()
        for result in self._recognizer.predict_each(self._sources(taken)):
            name = taken.popleft()
            if isinstance(result, Unreadable):
                self._fail(result.error)
            else:
                yield replace(result, source=name)

    def source(self, item: str | ImageError) -> str | bytes:
        """Return what is to be read for a name: the name itself, or what came from standard input.

        Raises:
            ImageError: If the name means no photo, or nothing came.
        """
        from ferkit.recognize.sources import STDIN

        source = self._piped if item == STDIN and self._piped is not None else item
        if isinstance(source, (str, bytes)):
            return source
        raise source

    def leave_uncopied(self, name: str, error: FerkitError) -> None:
        """Say and count that a photo has no annotated copy."""
        self.uncopied += 1
        remark(f"error: no annotated copy of {name}: {error}")

    def _sources(self, taken: deque[str]) -> Iterator[ImageSource]:
        from ferkit.errors import ImageError

        for item in self._found:
            if self._stop.is_set():
                return
            try:
                source = self.source(item)
            except ImageError as error:
                self._fail(error)
            else:
                taken.append(str(item))
                yield source
            self.done += 1
            self._advance()

    def _fail(self, error: ImageError) -> None:
        self.failures += 1
        remark(f"error: {error}")


def _annotated(
    recognizer: Recognizer, results: _Readable, folder: Path, *, explain: bool, max_pixels: int
) -> _Results:
    """Write the annotated copy of each photo, and pass the result on with the copy's path, if it has one.

    Raises:
        OutputError: If there will be no other copy either, as where the disk is full.
    """
    from ferkit.errors import ImageError, OutputError
    from ferkit.files import write_bytes
    from ferkit.images import encode_image
    from ferkit.recognize.drawing import AnnotatedNames, signature
    from ferkit.recognize.sources import STDIN

    names = AnnotatedNames(folder, results.names)
    for photo in results:
        name = photo.source or STDIN
        written = None
        try:
            # Read once more: to keep pictures until their faces are read would take memory by the photo.
            drawn = _drawn(recognizer, results.source(name), photo, explain=explain, max_pixels=max_pixels)
            signed = signature(results.source(name))
            target = names.name("stdin" if name == STDIN else name, signed)
            write_bytes(target, encode_image(drawn, target.suffix) + signed)
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
    from ferkit.errors import ImageError
    from ferkit.images import load_image
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
    """Return the table that is printed, when all is read: the widths of its columns depend on every row."""
    from rich import box
    from rich.table import Table

    from ferkit.recognize.sources import STDIN

    folder = _common_folder([name for name in names if name != STDIN])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    digits = 1 if len(recognizer.taxonomy) <= _LABELS_WITH_DECIMALS else 0
    table.add_column("photo", overflow="fold")
    table.add_column("box", no_wrap=True)
    table.add_column("face", justify="right")
    table.add_column("expression", no_wrap=True)
    for label in recognizer.taxonomy.labels:
        table.add_column(label, justify="right", overflow="fold")
    for photo, _ in results:
        name = photo.source or STDIN
        shown = name if name == STDIN or folder is None else os.path.relpath(Path(name).absolute(), folder)
        if not photo.faces:
            table.add_row(shown, "no face")
        for face in photo.faces:
            left, top, right, bottom = (round(value) for value in face.box)
            flags = face.quality.flags if face.quality else ()
            table.add_row(
                shown,
                f"{left},{top} {right - left}x{bottom - top}",
                f"{face.score:.0%}",
                "\n".join([f"{face.label} {face.confidence:.0%}", *flags]),
                *(f"{value:.{digits}%}" for value in face.probabilities.values()),
            )
            shown = ""
    return table


def _common_folder(files: list[str]) -> str | None:
    """Return the folder that all files lie in or below; None for no files, and for files of two drives."""
    try:
        return os.path.commonpath([Path(name).absolute().parent for name in files])
    except ValueError:
        return None
