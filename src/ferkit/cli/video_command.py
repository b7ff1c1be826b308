"""``ferkit video``: tracks the faces in a clip and recognizes their expressions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ferkit.cli.common import (
    DetectorOption,
    JsonOption,
    LabelSetOption,
    MaxErrorOption,
    MinConfidenceOption,
    MinFaceOption,
    ModelOption,
    NetworkThreadsOption,
    PriorOption,
    ProviderOption,
    TtaOption,
    as_tta_mode,
    console,
    new_app,
    option,
    print_json,
    remark,
    time_left,
)
from ferkit.core.interrupts import stopping

if TYPE_CHECKING:
    from ferkit.video.process import VideoOutputs, VideoSummary
    from ferkit.video.recognition import FrameResult

app = new_app()

_COLUMNS = ("track", "time", "seconds", "confidence", "expressions")
_NAME = 24  # characters of a file name beside a progress bar


@app.command()
def video(
    clip: Annotated[
        Path,
        typer.Argument(help="The clip: MP4, MOV, MKV, WebM, AVI, or another format of FFmpeg; or camera:0."),
    ],
    output: Annotated[
        Path | None, option("--output -o", "Write the annotated clip: .mp4, .mov or .mkv.")
    ] = None,
    csv: Annotated[Path | None, option("--csv", "Write a row per face and frame; - for stdout.")] = None,
    jsonl: Annotated[Path | None, option("--jsonl", "Write a JSON object per frame; - for stdout.")] = None,
    plot: Annotated[
        Path | None, option("--plot", "Plot each track's expressions over time: .png, .svg or .pdf.")
    ] = None,
    as_json: JsonOption = False,
    every: Annotated[int, option("--every", "Read each n-th frame.", default=True, min=1)] = 1,
    fps: Annotated[
        float | None, option("--fps", "Read at most this many frames per second.", "all", min=0.001)
    ] = None,
    start: Annotated[
        str, option("--from", "Start time: seconds, or [hours:]minutes:seconds.", default=True)
    ] = "0",
    end: Annotated[str | None, option("--to", "End time.", "the end")] = None,
    detect_every: Annotated[
        float,
        option(
            "--detect-every",
            "Seconds from one face detection to the next; optical flow moves faces in between. 0: in "
            "each frame.",
            default=True,
            min=0,
        ),
    ] = 0.2,
    max_gap: Annotated[
        float,
        option("--max-gap", "Seconds that a face may be missing and keep its track.", default=True, min=0),
    ] = 1.0,
    no_smoothing: Annotated[bool, option("--no-smoothing", "Recognize each frame by itself.")] = False,
    smoothing: Annotated[
        Literal["ema", "mean"] | None,
        option("--smoothing", "Exponential moving average, or mean of a window.", "ema"),
    ] = None,
    smooth_seconds: Annotated[
        float | None, option("--smooth-seconds", "Time constant, or length of the window.", "0.5", min=0.001)
    ] = None,
    smooth_space: Annotated[
        Literal["probability", "log"] | None,
        option("--smooth-space", "Mean of probabilities or of their logarithms.", "probability"),
    ] = None,
    silent: Annotated[bool, option("--silent", "Write the annotated clip without audio.")] = False,
    model: ModelOption = None,
    detector: DetectorOption = "yunet",
    min_face: MinFaceOption = None,
    min_confidence: MinConfidenceOption = 0.0,
    max_error: MaxErrorOption = None,
    prior: PriorOption = None,
    taxonomy: LabelSetOption = None,
    tta: TtaOption = "none",
    provider: ProviderOption = None,
    threads: NetworkThreadsOption = None,
    max_pixels: Annotated[
        int | None, option("--max-pixels", "Refuse clips with larger frames.", "89 million", min=1)
    ] = None,
) -> None:
    """Track the faces in a clip and recognize their expressions.

    Prints the expressions of each track, in percent of its duration. Ctrl-C ends early: the outputs contain
    the frames until then. camera:0 is the first camera of this machine, camera:NAME another; it is read until
    Ctrl-C or --to, always at its newest frame. A clip that is damaged or cut off is read as far as possible;
    stderr says so, and the exit status is 1.
    """
    from ferkit.core.errors import VideoError
    from ferkit.core.images import DEFAULT_MAX_PIXELS
    from ferkit.recognize import Recognizer
    from ferkit.video.process import STDOUT, VideoOutputs, process_video
    from ferkit.video.smoothing import Smoothing

    if every > 1 and fps is not None:
        raise typer.BadParameter("--every and --fps exclude each other")
    given = {"kind": smoothing, "seconds": smooth_seconds, "space": smooth_space}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if no_smoothing and chosen:
        raise typer.BadParameter("it excludes the other options of smoothing", param_hint="--no-smoothing")
    if silent and output is None:
        raise typer.BadParameter("it applies to the annotated clip; add -o FILE", param_hint="--silent")
    if as_json and STDOUT in (csv, jsonl):
        raise typer.BadParameter("a table already goes to the standard output", param_hint="--json")
    recognizer = Recognizer(
        model,
        detector=detector,
        min_face=min_face,
        min_confidence=min_confidence,
        max_error=max_error,
        prior=prior,
        taxonomy=taxonomy,
        tta=as_tta_mode(tta),
        providers=provider,
        threads=threads,
    )
    outputs = VideoOutputs(clip=output, csv=csv, jsonl=jsonl, plot=plot, sound=not silent)
    with stopping() as interrupts, _progress(clip) as progress:
        try:
            summary = process_video(
                recognizer,
                clip,
                outputs,
                progress=progress,
                start=start,
                end=end,
                every=every,
                fps=fps,
                detect_every=detect_every,
                max_gap=max_gap,
                smoothing=None if no_smoothing else Smoothing(**chosen),
                max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
                stop=interrupts.stop,
            )
        except VideoError as error:
            if interrupts.received is None:
                raise
            remark(f"interrupted: {error}")
            raise typer.Exit(128 + interrupts.received) from None
    _remark(summary, outputs)
    if STDOUT not in (csv, jsonl):
        if as_json:
            print_json({"source": str(clip), **summary.timeline.to_dict(), "notes": list(summary.notes)})
        else:
            _print_table(summary)
    if interrupts.received is not None:
        remark("interrupted; the frames until then are written")
        raise typer.Exit(128 + interrupts.received)
    if summary.damaged:
        raise typer.Exit(1)


@contextlib.contextmanager
def _progress(clip: Path) -> Iterator[Callable[[FrameResult, float | None], None] | None]:
    """Yield the callback of a progress bar on stderr, or None if that is no terminal.

    If the length of the clip is known, the bar shows the share that is read and the remaining time.
    """
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),  # file names may contain brackets
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[at]}"),
        time_left(),
    )
    with Progress(*columns, console=screen, transient=True) as bar:
        half = _NAME // 2
        name = clip.name if len(clip.name) <= _NAME else f"{clip.name[:half]}…{clip.name[1 - half :]}"
        task = bar.add_task(name, total=None, at="")

        def advance(frame: FrameResult, share: float | None) -> None:
            at = f"clip at {_clock(frame.time)}"
            if share is None:
                bar.update(task, at=at)
            else:
                bar.update(task, at=at, total=1.0, completed=share)

        yield advance


def _remark(summary: VideoSummary, outputs: VideoOutputs) -> None:
    for note in summary.notes:
        remark(f"{'error' if summary.damaged else 'note'}: {summary.source}: {note}")
    for path in outputs.files():
        remark(f"wrote {path}")
    if not summary.timeline.faces:
        remark(f"no face was found in {summary.timeline.frames} frames")


def _print_table(summary: VideoSummary) -> None:
    import textwrap

    from rich import box
    from rich.table import Table
    from rich.text import Text

    from ferkit.core.palette import UNCERTAIN, palette

    tracks = summary.timeline.tracks()
    if not tracks:
        return
    screen = console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("time", "expressions") else "right", no_wrap=True)
    times = [f"{_clock(track.first)}-{_clock(track.last)}" for track in tracks]
    room = screen.width - len("".join(_COLUMNS[:-1])) + len("time") - max(map(len, times)) - 12
    *labels, uncertain = tracks[0].by_label
    colours = {**palette(labels), uncertain: UNCERTAIN}
    for track, time in zip(tracks, times, strict=True):
        shares = sorted(track.by_label.items(), key=lambda share: -share[1])
        # Lines break between the labels only.
        items = [
            f"{label}\N{NO-BREAK SPACE}{part / (track.seconds or 1):.0%}" for label, part in shares if part
        ]
        lines = textwrap.wrap("  ".join(items), max(room, 20))
        text = Text("\n".join(lines).replace("\N{NO-BREAK SPACE}", " "))
        for label, colour in colours.items():
            text.highlight_words([label], style=colour.hex)
        table.add_row(str(track.track), time, f"{track.seconds:.1f}", f"{track.confidence:.0%}", text)
    screen.print(table)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:04.1f}"
