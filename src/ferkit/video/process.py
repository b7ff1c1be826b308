"""The work of ``ferkit video``: reads a clip once and writes tables, an annotated clip and a timeline."""

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
from ferkit.video.channel import BackgroundWriter
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
"""Suffixes of a timeline plot."""


@dataclass(frozen=True, slots=True)
class VideoOutputs:
    """The files to write; None: not written."""

    clip: Path | None = None  # the annotated clip
    csv: Path | None = None  # one row per face and frame; may be :data:`STDOUT`
    jsonl: Path | None = None  # one JSON object per frame; may be :data:`STDOUT`
    plot: Path | None = None  # the timeline of each track
    sound: bool = True  # whether the annotated clip keeps the audio

    def files(self) -> tuple[Path, ...]:
        """Return the paths of the files to write."""
        given = (self.clip, self.csv, self.jsonl, self.plot)
        return tuple(path for path in given if path is not None and path != STDOUT)


@dataclass(frozen=True, slots=True)
class VideoSummary:
    """The result of :func:`process_video`."""

    source: str  # the clip
    timeline: Timeline  # the tracks and their expressions
    notes: tuple[str, ...]  # defects of the clip
    damaged: bool  # whether a part of it could not be read


def process_video(
    recognizer: Recognizer,
    path: str | os.PathLike[str],
    outputs: VideoOutputs,
    *,
    progress: Callable[[FrameResult, float | None], None] | None = None,
    **options: Unpack[VideoOptions],
) -> VideoSummary:
    """Read a clip once and write all outputs.

    Files appear under their names when they are complete. When ``options["stop"]`` is set, they contain the
    frames until then; before the first frame nothing is written.

    Args:
        recognizer: Detector and model.
        path: The clip.
        outputs: The files to write.
        progress: Called after each frame with its result and the share of the range that is read, 0..1, or
            None if the length of the clip is unknown.
        **options: See :func:`ferkit.video.recognition.recognize_video`.

    Raises:
        VideoError: If the clip cannot be read or was stopped before its first frame, or an option is out of
            range.
        OutputError: If a file cannot be written, or would overwrite the clip or another output.
        MissingDependencyError: If the extra ``video`` is not installed.
    """
    _check(path, outputs)
    options["keep_pictures"] = outputs.clip is not None
    timeline = Timeline(recognizer.taxonomy)
    with contextlib.ExitStack() as stack:
        reading = stack.enter_context(recognize_video(recognizer, path, **options))
        source = reading.info.source
        if outputs.plot is not None:
            require("matplotlib", "plot")
            stack.enter_context(_plotted(timeline, outputs.plot, Path(source).name))
        tables: list[tuple[Path, ResultSink]] = []
        if outputs.csv is not None:
            stream = stack.enter_context(_text(outputs.csv))
            tables.append((outputs.csv, CSVSink(stream, frame_columns(recognizer.taxonomy.labels))))
        if outputs.jsonl is not None:
            tables.append((outputs.jsonl, JSONLinesSink(stack.enter_context(_text(outputs.jsonl)))))
        draw: Callable[[FrameResult, ClipFrame], None] | None = None
        pairs: Iterator[tuple[FrameResult, ClipFrame | None]] = ((result, None) for result in reading)
        if outputs.clip is not None:
            stop = options.get("stop")
            whole = options.get("end") is None
            draw = stack.enter_context(
                _annotated(
                    reading, outputs.clip, outputs.sound, lambda: whole and not (stop and stop.is_set())
                )
            )
            pairs = iter(reading.with_pictures())
        for result, frame in pairs:
            for place, table in tables:
                with output_errors("the standard output" if place == STDOUT else place):
                    table.write(result)
            timeline.add(result)
            if draw is not None and frame is not None:
                draw(result, frame)
            if progress is not None:
                progress(result, reading.share_read(result))
        if not timeline.frames:
            raise VideoError(f"{source} was stopped before its first frame; nothing is written")
    return VideoSummary(source, timeline, reading.notes, reading.damaged)


def _check(source: str | os.PathLike[str], outputs: VideoOutputs) -> None:
    """Refuse conflicting outputs before anything is read."""
    taken = {os.fspath(source): "the clip itself"}
    for path in outputs.files():
        for place, what in taken.items():
            if _is_same_file(place, path):
                raise OutputError(f"{path} would overwrite {what}; choose another name")
        taken[os.fspath(path)] = f"another output, {path}"
    if outputs.csv == STDOUT and outputs.jsonl == STDOUT:
        raise OutputError("only one table can go to the standard output")
    if outputs.plot is not None and outputs.plot.suffix.lower() not in PLOTS:
        raise VideoError(f"a timeline is written as {', '.join(PLOTS)}. Received: {outputs.plot}")


def _is_same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Return whether two paths name one file, also by links or on a file system that ignores case."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)  # noqa: PTH121
    except OSError:  # one of them does not exist
        return False


@contextlib.contextmanager
def _plotted(timeline: Timeline, path: Path, title: str) -> Iterator[None]:
    """Reserve the file at once, so that a bad path is an error before the clip is read; plot at the end."""
    with replacing(path) as temporary:
        yield
        timeline.draw(temporary, title=title)


@contextlib.contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """Yield a text stream into a file that appears when it is complete, or the standard output."""
    if path == STDOUT:
        yield sys.stdout
        return
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        yield stream


@contextlib.contextmanager
def _annotated(
    reading: VideoReading, path: Path, sound: bool, to_the_end: Callable[[], bool]
) -> Iterator[Callable[[FrameResult, ClipFrame], None]]:
    """Yield a function that draws a frame and adds it to the annotated clip, in a thread of its own."""
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

        with BackgroundWriter(consume, limit=AHEAD) as background:
            yield lambda result, frame: background.put((result, frame), weight(frame))
        if to_the_end():
            writer.finish_sound()
