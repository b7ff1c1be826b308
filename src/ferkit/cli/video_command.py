"""``ferkit video``: the expressions of the people in a clip, over time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    print_json,
    remark,
)
from ferkit.cli.interrupts import stopping

if TYPE_CHECKING:
    from ferkit.video.process import VideoOutputs, VideoSummary
    from ferkit.video.recognition import FrameResult
    from ferkit.video.timeline import Person

app = new_app()


class SmoothingKind(StrEnum):
    """Means over time."""

    EMA = "ema"
    MEAN = "mean"


class SmoothingSpace(StrEnum):
    """What the mean is taken of."""

    PROBABILITY = "probability"
    LOG = "log"


@app.command()
def video(
    clip: Annotated[
        Path, typer.Argument(help="A clip: MP4, MOV, MKV, WebM, AVI, or what else FFmpeg reads.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The clip with the faces drawn in: .mp4, .mov or .mkv."),
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="A row per face and frame; - for stdout.")] = None,
    jsonl: Annotated[
        Path | None, typer.Option("--jsonl", help="A line of JSON per frame; - for stdout.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="A picture of each person's expressions over time: .png, .svg or .pdf."),
    ] = None,
    as_json: JsonOption = False,
    every: Annotated[int, typer.Option("--every", min=1, help="Read each n-th frame.")] = 1,
    fps: Annotated[
        float | None,
        typer.Option("--fps", min=0.001, help="Read at most so many frames a second.", show_default="all"),
    ] = None,
    start: Annotated[
        str, typer.Option("--from", help="Where to start: seconds, or [hours:]minutes:seconds.")
    ] = "0",
    end: Annotated[
        str | None, typer.Option("--to", help="Where to end, likewise.", show_default="the end")
    ] = None,
    detect_every: Annotated[
        int | None,
        typer.Option(
            "--detect-every",
            min=1,
            help="Search for faces in each n-th frame that is read; they move with the picture between.",
            show_default="as five frames of the clip pass",
        ),
    ] = None,
    max_gap: Annotated[
        float,
        typer.Option("--max-gap", min=0, help="Seconds out of sight after which a person gets a new number."),
    ] = 1.0,
    no_smoothing: Annotated[
        bool, typer.Option("--no-smoothing", help="Show what each frame says by itself.")
    ] = False,
    smoothing: Annotated[
        SmoothingKind | None,
        typer.Option(
            "--smoothing",
            help="How frames are joined: weights that fall with time, or equal ones.",
            show_default=SmoothingKind.EMA.value,
        ),
    ] = None,
    smooth_seconds: Annotated[
        float | None,
        typer.Option(
            "--smooth-seconds",
            min=0.001,
            help="Time constant, or length, of the smoothing.",
            show_default="0.5",
        ),
    ] = None,
    smooth_space: Annotated[
        SmoothingSpace | None,
        typer.Option(
            "--smooth-space",
            help="The mean of probabilities or of their logarithms.",
            show_default=SmoothingSpace.PROBABILITY.value,
        ),
    ] = None,
    silent: Annotated[
        bool, typer.Option("--silent", help="Leave the sound out of the annotated clip.")
    ] = False,
    model: ModelOption = None,
    detector: Annotated[
        str,
        typer.Option(help="centerface, yunet:FILE, or none (each frame is a face crop already)."),
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
        int | None,
        typer.Option(
            "--max-pixels", min=1, help="Refuse clips with larger frames.", show_default="89 million"
        ),
    ] = None,
) -> None:
    """Follow the people in a clip and read their expressions.

    Prints how long each person showed which expression. Tables, the annotated clip and the picture come on
    top. Ctrl-C ends early: what was read until then is written, and can be played. A clip that is damaged or
    cut off is read as far as it goes; that is said on stderr, and the exit status is 1.
    """
    from ferkit.core.errors import VideoError
    from ferkit.core.images import DEFAULT_MAX_PIXELS
    from ferkit.recognize import Recognizer
    from ferkit.video.process import STDOUT, VideoOutputs, process_video
    from ferkit.video.smoothing import Smoothing

    if every > 1 and fps is not None:
        raise typer.BadParameter("--every and --fps exclude each other")
    for option, value in (
        ("--smoothing", smoothing),
        ("--smooth-seconds", smooth_seconds),
        ("--smooth-space", smooth_space),
    ):
        if no_smoothing and value is not None:
            raise typer.BadParameter(f"--no-smoothing and {option} exclude each other")
    if silent and output is None:
        raise typer.BadParameter(
            "it leaves the sound out of the annotated clip; add -o FILE", param_hint="--silent"
        )
    if as_json and STDOUT in (csv, jsonl):
        raise typer.BadParameter("the standard output is taken by a table already", param_hint="--json")
    recognizer = Recognizer(
        model,
        detector=detector,
        min_face=min_face,
        min_confidence=min_confidence,
        taxonomy=taxonomy,
        tta=as_tta_mode(tta),
        providers=provider,
        threads=threads,
    )
    outputs = VideoOutputs(clip=output, csv=csv, jsonl=jsonl, plot=plot, sound=not silent)
    how = Smoothing(
        (smoothing or SmoothingKind.EMA).value,
        0.5 if smooth_seconds is None else smooth_seconds,
        (smooth_space or SmoothingSpace.PROBABILITY).value,
    )
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
                smoothing=None if no_smoothing else how,
                max_pixels=DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels,
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
        remark("interrupted; what was read until then is written")
        raise typer.Exit(128 + interrupts.received)
    if summary.damaged:
        raise typer.Exit(1)


@contextlib.contextmanager
def _progress(clip: Path) -> Iterator[Callable[[FrameResult, float | None], None] | None]:
    """Yield what moves a bar on stderr; nothing where that is no terminal.

    Of a clip that says how long it is, the bar tells the share that is read, and the time that is left.
    """
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),  # a file's name may hold brackets
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[at]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task(clip.name, total=None, at="", left="")

        def move(frame: FrameResult, share: float | None) -> None:
            at = f"{frame.time:.1f} s, frame {frame.index}"
            if share is None:
                bar.update(task, at=at)
            else:
                bar.update(task, at=at, left="left", total=1.0, completed=share)

        yield move


def _remark(summary: VideoSummary, outputs: VideoOutputs) -> None:
    for note in summary.notes:
        remark(f"{'error' if summary.damaged else 'note'}: {summary.source}: {note}")
    for path in outputs.files():
        remark(f"wrote {path}")
    if not summary.timeline.faces:
        remark(f"no face was found in the {summary.timeline.frames} frames that were read")


def _print_table(summary: VideoSummary) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("person", justify="right")
    table.add_column("seen", no_wrap=True)
    table.add_column("seconds", justify="right")
    table.add_column("mostly")
    table.add_column("confidence", justify="right")
    people = summary.timeline.people()
    shown = [label for label in _labels(people) if any(person.by_label[label] for person in people)]
    for label in shown:
        table.add_column(label, justify="right")
    for person in people:
        table.add_row(
            str(person.track),
            f"{_clock(person.first)}-{_clock(person.last)}",
            f"{person.seconds:.1f}",
            person.label,
            f"{person.confidence:.0%}",
            *(f"{person.by_label[label] / (person.seconds or 1):.0%}" for label in shown),
        )
    if people:
        console().print(table)


def _labels(people: tuple[Person, ...]) -> tuple[str, ...]:
    return tuple(people[0].by_label) if people else ()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:04.1f}"
