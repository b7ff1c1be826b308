"""``ferkit predict``: the expressions of the faces in photos."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ferkit.cli.common import JsonOption, ModelOption, console, new_app, remark

if TYPE_CHECKING:
    from ferkit.recognize import Photo, Recognizer

app = new_app()


class Format(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"


@app.command()
def predict(
    photos: Annotated[list[Path], typer.Argument(help="Photos: JPEG, PNG, WebP, TIFF, BMP or GIF.")],
    model: ModelOption = None,
    output_format: Annotated[Format, typer.Option("--format", "-f", help="How to print.")] = Format.TABLE,
    as_json: JsonOption = False,
    annotate: Annotated[
        Path | None,
        typer.Option(help="Folder for copies of the photos with the faces drawn in.", show_default=False),
    ] = None,
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
) -> None:
    """Find the faces in photos and read their expressions.

    Faces come with box, score, landmarks, label and all probabilities. A photo without a face is no error. A
    photo that cannot be read is one: it is named on stderr, the others are read all the same, and the exit
    status is 1.
    """
    from ferkit.recognize import Recognizer

    recognizer = Recognizer(
        model, detector=detector, min_face=min_face, min_confidence=min_confidence, taxonomy=taxonomy
    )
    kind = Format.JSON if as_json else output_format
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what no encoding has
    readable = _Readable(recognizer, photos)
    results = readable if annotate is None else _annotated(readable, photos, annotate)
    if kind is Format.TABLE:
        _print_table(recognizer, results, photos)
    else:
        from ferkit.recognize.writers import make_writer

        with make_writer(kind, sys.stdout, recognizer.taxonomy) as writer:
            for photo in results:
                writer.write(photo)
    if readable.failures:
        if len(photos) > 1:
            remark(f"{readable.failures} of {len(photos)} photos could not be read")
        raise typer.Exit(1)


class _Readable:
    """The photos that can be read; it prints and counts the others."""

    def __init__(self, recognizer: Recognizer, photos: list[Path]) -> None:
        self._recognizer = recognizer
        self._photos = photos
        self.failures = 0

    def __iter__(self) -> Iterator[Photo]:
        from ferkit.recognize import Unreadable

        for result in self._recognizer.predict_each(self._photos):
            if isinstance(result, Unreadable):
                self.failures += 1
                remark(f"error: {result.error}")
            else:
                yield result


def _annotated(results: _Readable, photos: list[Path], folder: Path) -> Iterator[Photo]:
    """Write the annotated copy of each photo, and pass the result on."""
    from ferkit.images import load_image, write_image
    from ferkit.recognize.drawing import AnnotatedNames, draw

    names = AnnotatedNames(folder, photos)
    for photo in results:
        if photo.source is not None:
            target = names.name(photo.source)
            # Decoded once more: to keep pictures until their faces are read would take memory by the photo.
            write_image(target, draw(load_image(photo.source), photo))
            remark(f"wrote {target}")
        yield photo


def _print_table(recognizer: Recognizer, results: Iterator[Photo] | _Readable, photos: list[Path]) -> None:
    import os

    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("photo", overflow="fold", min_width=16)
    table.add_column("box", no_wrap=True)
    table.add_column("face", justify="right")
    table.add_column("expression")
    for label in recognizer.taxonomy.labels:
        table.add_column(label, justify="right")
    folder = os.path.commonpath([path.absolute().parent for path in photos])
    for photo in results:
        name = os.path.relpath(Path(photo.source or "").absolute(), folder)
        if not photo.faces:
            table.add_row(name, "no face")
        for face in photo.faces:
            left, top, right, bottom = (round(value) for value in face.box)
            table.add_row(
                name,
                f"{left},{top} {right - left}x{bottom - top}",
                f"{face.score:.0%}",
                f"{face.label} {face.confidence:.0%}",
                *(f"{value:.1%}" for value in face.probabilities.values()),
            )
            name = ""
    console().print(table)
