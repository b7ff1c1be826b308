"""The standard streams of a command: closed ones replaced, control codes escaped, write errors explained."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

from ferkit.core.errors import CONTROL, OutputError

if TYPE_CHECKING:
    from rich.console import Console


def escape(text: str) -> str:
    r"""Return text with control characters as escapes of JSON, so that JSON stays valid; tabs and \n stay.

    Example:
        >>> escape("a\x1b[31m\n")
        'a\\u001b[31m\n'
    """
    return CONTROL.sub(lambda found: found[0] if found[0] in "\t\n" else f"\\u{ord(found[0]):04x}", text)


class Stream:
    """A text stream whose control characters are escaped and whose write errors are explained.

    ``name`` is what error messages call it; None if a write error is ignored.
    """

    def __init__(self, stream: TextIO, name: str | None, *, escapes: bool = True) -> None:
        self._stream = stream
        self._name = name
        self._escapes = escapes

    @property
    def unescaped(self) -> Stream:
        """The same stream for text whose control codes are the program's own, as those of a progress bar."""
        return Stream(self._stream, self._name, escapes=False)

    def write(self, text: str) -> int:
        """Write text.

        Raises:
            OutputError: If it cannot be written, unless such errors are ignored.
            BrokenPipeError: If nobody reads it any more.
        """
        with self._explained():
            self._stream.write(escape(text) if self._escapes else text)
        return len(text)

    def flush(self) -> None:
        """Flush.

        Raises:
            OutputError: As :meth:`write`.
        """
        with self._explained():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the stream."""
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # The rest of the buffer is dropped; Python would try to write it again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if self._name is None:
                return
            if isinstance(error, BrokenPipeError):
                raise
            raise OutputError(f"cannot write the {self._name}: {error.strerror or error}") from error


def open_closed_streams() -> None:
    """Open the null device in place of the standard streams that are closed, as for services and ``>&-``.

    Otherwise the next file to be opened would get the number of such a stream, and its messages.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                null = os.open(os.devnull, os.O_RDWR)
                if null != number:
                    os.dup2(null, number)
                    os.close(null)
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Make ``sys.stdout`` and ``sys.stderr`` guarded streams (:class:`Stream`) within the block."""
    open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A result may hold characters that the encoding of a redirected stdout lacks.
        codecs.register_error("ferkit.escape", _escape_unencodable)
        sys.stdout.reconfigure(errors="ferkit.escape")
    out, err = Stream(sys.stdout, "standard output"), Stream(sys.stderr, None)
    with contextlib.redirect_stdout(cast(TextIO, out)), contextlib.redirect_stderr(cast(TextIO, err)):
        yield


def make_console(stream: TextIO, width: int | None) -> Console:
    """Return a Rich console that escapes control characters in what it prints, but not its own codes."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class EscapingConsole(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=escape(segment.text))

    target = getattr(stream, "unescaped", stream)
    return EscapingConsole(file=target, width=width, highlight=False, markup=False, emoji=False)
