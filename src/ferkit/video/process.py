"""A clip from file to files: read once, written as tables, an annotated clip and a timeline along the way."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, Unpack

from ferkit.core.errors import OutputError, VideoError
from ferkit.core.extras import require
from ferkit.core.files import output_errors, replacing
from ferkit.recognize.sinks import CSVSink, JSONLinesSink, ResultSink
from ferkit.video.channel import Sink
from ferkit.video.clip import ClipFrame
from ferkit.video.recognition import (
    AHEAD,
    FrameResult,
    VideoOptions,
    VideoReading,
    frame_columns,
    recognize_video,
    weight,
)
from ferkit.video.timeline import Timeline
from ferkit.video.writers import ClipWriter, draw_frame

if TYPE_CHECKING:
    from ferkit.recognize.recognizer import Recognizer

STDOUT = Path("-")
"""In place of a file: the table goes to the standard output."""

PLOTS = (".png", ".svg", ".pdf")
"""Suffixes that a timeline can have."""


@dataclass(frozen=True, slots=True)
class VideoOutputs:
    """What is to be written; None: nothing of that kind.

    Attributes:
        clip: The clip with the faces drawn in.
        csv: One row per face and frame; :data:`STDOUT` is possible.
        jsonl: One line of JSON per frame; :data:`STDOUT` is possible.
        plot: The picture of each person's expressions over time.
        sound: Whether the annotated clip keeps the sound.
    """

    clip: Path | None = None
    csv: Path | None = None
    jsonl: Path | None = None
    plot: Path | None = None
    sound: bool = True

    def files(self) -> tuple[Path, ...]:
        """Return the files that are to be written."""
        given = (self.clip, self.csv, self.jsonl, self.plot)
        return tuple(path for path in given if path is not None and path != STDOUT)


@dataclass(frozen=True, slots=True)
class VideoSummary:
    """What came of a clip.

    Attributes:
        source: The clip.
        timeline: The people in it, and what they showed.
        notes: What is unusual about the clip.
        damaged: Whether a part of it could not be read.
    """

    source: str
    timeline: Timeline
    notes: tuple[str, ...]
    damaged: bool


def process_video(
    recognizer: Recognizer,
    path: str | os.PathLike[str],
    outputs: VideoOutputs,
    *,
    progress: Callable[[FrameResult, float | None], None] | None = None,
    **options: Unpack[VideoOptions],
) -> VideoSummary:
    """Read a clip once and write all that is asked for.

    Files appear under their names when they are complete; when ``options["stop"]`` is set they hold what was
    read until then, and can be used. Before the first frame there is nothing to write.

    Args:
        recognizer: Finds and reads the faces.
        path: The clip.
        outputs: What to write.
        progress: Called after each frame with what was found in it, and with the share of the range that is
            read, 0..1, or None if the clip does not say how long it is.
        **options: As of :func:`ferkit.video.recognition.recognize_video`.

    Raises:
        VideoError: If the clip cannot be read or was stopped before its first frame, or an option is out of
            range.
        OutputError: If a file cannot be written, or would overwrite the clip or another file.
        MissingDependencyError: If the extra ``video`` is not installed.
    """
    _check(path, outputs)
    if outputs.plot is not None:
        require("matplotlib", "video")
    options["keep_pictures"] = outputs.clip is not None
    timeline = Timeline(recognizer.taxonomy)
    with (
        recognize_video(recognizer, path, **options) as reading,
        _reserved(outputs.plot) as picture,
    ):
        with contextlib.ExitStack() as stack:
            tables: list[tuple[Path, ResultSink]] = []
            if outputs.csv is not None:
                stream = stack.enter_context(_text(outputs.csv))
                tables.append((outputs.csv, CSVSink(stream, frame_columns(recognizer.taxonomy.labels))))
            if outputs.jsonl is not None:
                tables.append((outputs.jsonl, JSONLinesSink(stack.enter_context(_text(outputs.jsonl)))))
            draw = None
            if outputs.clip is not None:
                stop = options.get("stop")
                whole = options.get("end") is None
                draw = stack.enter_context(
                    _annotated(
                        reading, outputs.clip, outputs.sound, lambda: whole and not (stop and stop.is_set())
                    )
                )
            pairs = (
                ((result, None) for result in reading) if outputs.clip is None else reading.with_pictures()
            )
            for result, frame in pairs:
                for place, table in tables:
                    with output_errors("the standard output" if place == STDOUT else place):
                        table.write(result)
                timeline.add(result)
                if draw is not None and frame is not None:
                    draw((result, frame))
                if progress is not None:
                    progress(result, reading.share_read(result))
            if not timeline.frames:
                raise VideoError(
                    f"{reading.info.source} was stopped before its first frame; nothing is written"
                )
        if picture is not None:
            timeline.draw(picture, title=Path(reading.info.source).name)
    return VideoSummary(reading.info.source, timeline, reading.notes, reading.damaged)


def _check(source: str | os.PathLike[str], outputs: VideoOutputs) -> None:
    """Refuse outputs that would be lost or do harm, before anything is read."""
    taken = {os.fspath(source): "the clip itself"}
    for path in outputs.files():
        for place, what in taken.items():
            if _same(place, path):
                raise OutputError(f"{path} would overwrite {what}; choose another name")
        taken[os.fspath(path)] = f"another output, {path}"
    if outputs.csv == STDOUT and outputs.jsonl == STDOUT:
        raise OutputError("only one table can go to the standard output")
    if outputs.plot is not None and outputs.plot.suffix.lower() not in PLOTS:
        raise VideoError(f"a timeline is written as {', '.join(PLOTS)}. Received: {outputs.plot}")


def _same(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Tell whether two names mean one file; where the file system ignores case, A.MOV and a.mov do."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)  # noqa: PTH121
    except OSError:  # One of them is not there yet.
        return False


def _reserved(path: Path | None) -> contextlib.AbstractContextManager[Path | None]:
    """Return what yields a file that appears when it is complete, so that a bad place is noticed first."""
    return contextlib.nullcontext() if path is None else replacing(path)


@contextlib.contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """Yield a stream into a file that appears when it is complete."""
    if path == STDOUT:
        yield sys.stdout
        return
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        yield stream


@contextlib.contextmanager
def _annotated(
    reading: VideoReading, path: Path, sound: bool, to_the_end: Callable[[], bool]
) -> Iterator[Callable[[tuple[FrameResult, ClipFrame]], None]]:
    """Yield what draws a frame and adds it to the clip, in a thread of its own."""
    info = reading.info
    with (
        replacing(path) as temporary,
        ClipWriter(
            temporary,
            source=info.source if sound and info.audio else None,
            start=reading.start,
            time_base=info.time_base,
            name=path,
        ) as writer,
    ):

        def consume(item: tuple[FrameResult, ClipFrame]) -> None:
            result, frame = item
            writer.write(draw_frame(frame.rgb, result), frame.time, frame.duration)

        with Sink(consume, limit=AHEAD) as sink:
            yield lambda item: sink.put(item, weight(item[1]))
        if to_the_end():
            writer.finish_sound()
