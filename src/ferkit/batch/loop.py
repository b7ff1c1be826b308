"""The loop over many photos: recognize them, write their annotated copies, and write their results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ferkit.batch import STDIN
from ferkit.batch.copies import AnnotatedCopies
from ferkit.core.errors import ImageError
from ferkit.recognize.recognizer import NamedSource
from ferkit.recognize.results import Unreadable
from ferkit.recognize.sinks import ResultSink

if TYPE_CHECKING:
    from ferkit.recognize.recognizer import Recognizer


@dataclass(slots=True)
class BatchSummary:
    """What a loop has done."""

    done: int = 0  # photos that were taken
    unreadable: int = 0  # those that could not be read
    copied: int = 0  # annotated copies that were written
    uncopied: int = 0  # photos that were read but have no annotated copy


def process_photos(
    recognizer: Recognizer,
    photos: Iterable[str | ImageError],
    sink: ResultSink,
    *,
    copies: AnnotatedCopies | None = None,
    stdin: bytes | ImageError | None = None,
    stop: threading.Event | None = None,
    workers: int = 1,
    on_photo: Callable[[], None] = lambda: None,
    on_error: Callable[[str], None] = lambda _: None,
) -> BatchSummary:
    """Recognize photos and write the results into a sink, in order.

    ``photos`` are those of :func:`ferkit.batch.sources.find_photos`, of which ``-`` stands for ``stdin``.
    With ``copies``, results get a field ``annotated``: the path of the copy. Once ``stop`` is set no more
    photos are taken; the results of those taken are still written. ``on_photo`` is called after each photo
    that is taken, ``on_error`` with a message for each photo that has no result or no copy.

    Raises:
        OutputError: If no annotated copy can be written, for example because the disk is full.
    """
    summary = BatchSummary()

    def taken() -> Iterator[NamedSource]:
        for photo in photos:
            if stop is not None and stop.is_set():
                return
            source = stdin if photo == STDIN and stdin is not None else photo
            yield (photo if isinstance(photo, str) else None), source
            summary.done += 1
            on_photo()

    for result in recognizer.predict_each(taken(), keep_pictures=copies is not None, workers=workers):
        if isinstance(result, Unreadable):
            summary.unreadable += 1
            on_error(str(result.error))
            sink.write(result)
        elif copies is None:
            sink.write(result)
        else:
            path = None
            try:
                path = str(copies.write(result))
                summary.copied += 1
            except ImageError as error:
                summary.uncopied += 1
                on_error(f"no annotated copy of {result.source}: {error}")
            sink.write(result, annotated=path)
        sink.flush()
    return summary
