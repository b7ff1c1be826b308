"""The table that ``ferkit predict`` prints."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ferkit.batch import STDIN
from ferkit.cli.common import console
from ferkit.recognize.results import Face, Photo, Result, Unreadable
from ferkit.recognize.sinks import ResultSink

if TYPE_CHECKING:
    from typing import TextIO

    from ferkit.core.taxonomy import Taxonomy

_LABELS_WITH_DECIMALS = 7  # a larger number of columns has no room for decimals


class PhotoTable(ResultSink):
    """A table of all faces; it is printed at the end, since the widths of its columns depend on every row.

    Args:
        stream: The standard output.
        taxonomy: The label set of the results.
    """

    def __init__(self, stream: TextIO, taxonomy: Taxonomy) -> None:
        super().__init__(stream)
        self._taxonomy = taxonomy
        self._photos: list[Photo] = []

    def write(self, result: Result | Unreadable, **extra: Any) -> None:  # noqa: ARG002
        """Add a photo; unreadable photos are not in the table."""
        if isinstance(result, Photo):
            self._photos.append(result)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Print the table, also after an error."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
        digits = 1 if len(self._taxonomy) <= _LABELS_WITH_DECIMALS else 0
        table.add_column("photo", overflow="fold")
        table.add_column("box", no_wrap=True)
        table.add_column("face", justify="right")
        table.add_column("expression", no_wrap=True)
        for label in self._taxonomy.labels:
            table.add_column(label, justify="right", overflow="fold")
        names = [photo.source or STDIN for photo in self._photos]
        folder = _common_folder([name for name in names if name != STDIN])
        for name, photo in zip(names, self._photos, strict=True):
            short = (
                name if name == STDIN or folder is None else os.path.relpath(Path(name).absolute(), folder)
            )
            for number, row in enumerate([_row(face, digits) for face in photo.faces] or [["no face"]]):
                table.add_row(short if number == 0 else "", *row)
        console().print(table)


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
