"""The table that ``ferkit predict`` prints."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ferkit.batch import STDIN
from ferkit.cli.common import console
from ferkit.core.errors import escape_control
from ferkit.core.palette import UNCERTAIN, palette
from ferkit.recognize.results import Face, Photo, Result, Unreadable
from ferkit.recognize.sinks import ResultSink

if TYPE_CHECKING:
    from typing import TextIO

    from rich.text import Text

_WIDTH = 80  # columns, where no terminal sets them
_LEAST_NAME = 12  # columns of a shortened name
_BAR = 5  # cells of a probability of 1
_LEAST_SECOND = 0.05  # probability from which the second label is shown
_QUALITY = {
    **{"size": "{:.0f}", "sharpness": "{:.2f}", "brightness": "{:.0f}"},
    **{"yaw": "{:.0f}", "pitch": "{:.0f}", "roll": "{:.0f}", "outside": "{:.0%}"},
}  # columns and their formats
_EIGHTHS = "▏▎▍▌▋▊▉█"


class PhotoTable(ResultSink):
    """A table of all faces; it is printed at the end, since the widths of its columns depend on every row.

    A face has its number, its box, its two leading labels with bars, and its warning flags, in the width of
    the terminal, or in 80 columns without one. Names are shortened in the middle.

    ``full``: the table has whole names, all probabilities, scores and quality, however wide it gets.
    """

    def __init__(self, stream: TextIO, labels: tuple[str, ...], *, full: bool = False) -> None:
        super().__init__(stream)
        self._labels = labels
        self._full = full
        self._photos: list[Photo] = []

    def write(self, result: Result | Unreadable, **extra: Any) -> None:  # noqa: ARG002
        """Add a photo, without its picture; unreadable photos are not in the table."""
        if isinstance(result, Photo):
            self._photos.append(replace(result, picture=None))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Print the table, also after an error; without a photo there is none."""
        if not self._photos:
            return
        from rich import box
        from rich.measure import Measurement
        from rich.table import Table
        from rich.text import Text

        screen = console()
        screen.file = self._stream
        if not screen.is_terminal and "COLUMNS" not in os.environ:
            screen.width = _WIDTH
        blocks = screen.encoding.lower().startswith("utf")
        faces = [[self._cells(number, face, blocks) for number, face in enumerate(p)] for p in self._photos]
        names = [photo.source or STDIN for photo in self._photos]
        names = [escape_control(name) for name in (names if self._full else _relative(names))]
        headings = ["#", "box", "expression"]
        if self._full:
            headings += ["score", *self._labels, *_QUALITY]
        else:
            rows = [[Text(heading) for heading in headings], *(cells for some in faces for cells in some)]
            rest = sum(max(_width(cell) for cell in column) + 1 for column in zip(*rows, strict=True))
            room = max(_LEAST_NAME, screen.width - rest)
            names = [_shorten(name, room, "…" if blocks else "..") for name in names]
        table = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1 if self._full else 0, 0, 0)
        )
        for heading in ("photo", *headings):
            table.add_column(heading, no_wrap=True)
        for name, some in zip(names, faces, strict=True):
            for number, cells in enumerate(some or [[Text(), Text(), Text("no face")]]):
                table.add_row(name if number == 0 else "", *cells)
        if self._full:
            wide = screen.options.update(width=100_000)
            screen.width = max(screen.width, Measurement.get(screen, wide, table).maximum)
        screen.print(table, soft_wrap=True)

    def _cells(self, number: int, face: Face, blocks: bool) -> list[Text]:
        from rich.text import Text

        left, top, right, bottom = (round(value) for value in face.box)
        place = f"{left},{top} {right - left}x{bottom - top}"
        more = []
        if self._full:
            more = [f"{face.score:.0%}", *(f"{value:.1%}" for value in face.probabilities.values())]
            if (q := face.quality) is not None:
                values = (getattr(q, name) for name in _QUALITY)
                more += [
                    "" if value is None else style.format(value)
                    for value, style in zip(values, _QUALITY.values(), strict=True)
                ]
        return [Text(str(number)), Text(place), self._expression(face, blocks), *map(Text, more)]

    def _expression(self, face: Face, blocks: bool) -> Text:
        """Return the leading labels with their bars, and the flags."""
        from rich.text import Text

        colours = palette(self._labels)
        first, second = sorted(face.probabilities.items(), key=lambda item: -item[1])[:2]
        shown = [first]
        text = Text()
        width = max(map(len, self._labels))
        if face.label not in self._labels:
            text.append(f"{escape_control(face.label):<{width + _BAR + 6}}", f"color({UNCERTAIN.terminal})")
        elif second[1] >= _LEAST_SECOND:
            shown.append(second)
        for label, share in shown:
            text.append(f"{'  ' if text else ''}{escape_control(label):<{width}} ")
            text.append(_bar(share, blocks), f"color({colours[label].terminal})")
            text.append(f" {share:>4.0%}")
        flags = face.quality.flags if face.quality else ()
        if flags:
            text.append(f"\n{', '.join(flags)}", "dim")
        return text


def _width(cell: Text) -> int:
    return max(line.cell_len for line in cell.split(allow_blank=True))


def _bar(share: float, blocks: bool) -> str:
    """Return a bar of five cells, padded; of ``#`` if there are no block characters."""
    if not blocks:
        return ("#" * round(share * _BAR)).ljust(_BAR)
    full, part = divmod(round(share * _BAR * 8), 8)
    return ("█" * full + (_EIGHTHS[part - 1] if part else "")).ljust(_BAR)


def _shorten(name: str, width: int, ellipsis: str) -> str:
    """Return a name with an ellipsis in the middle if it is wider than ``width`` cells."""
    from rich.cells import cell_len

    if cell_len(name) <= width:
        return name
    head, tail = name[: len(name) // 2], name[len(name) // 2 :]
    while cell_len(head) + len(ellipsis) + cell_len(tail) > width:
        head, tail = (head[:-1], tail) if len(head) >= len(tail) else (head, tail[1:])
    return f"{head}{ellipsis}{tail}"


def _relative(names: list[str]) -> list[str]:
    """Return names relative to the folder that all files are in or below, if there is one."""
    folders = [Path(name).absolute().parent for name in names if name != STDIN]
    try:
        common = os.path.commonpath(folders)
    except ValueError:  # no files, or files of two drives
        return names
    if common == Path(common).anchor:
        return names
    return [name if name == STDIN else os.path.relpath(Path(name).absolute(), common) for name in names]
