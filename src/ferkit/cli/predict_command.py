"""``ferkit predict``: the expressions of the faces in photos."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ferkit.cli.common import (
    PRIOR_HELP,
    DetectorOption,
    JsonOption,
    LabelSetOption,
    MaxErrorOption,
    MinConfidenceOption,
    MinFaceOption,
    ModelOption,
    NetworkThreadsOption,
    ProviderOption,
    TtaOption,
    as_tta_mode,
    new_app,
    option,
    passed_over_remark,
    progress,
    refuse_options,
    remark,
)
from ferkit.cli.predict_table import TableOptions, predict_table, worker_range
from ferkit.core.interrupts import stopping

if TYPE_CHECKING:
    from ferkit.core.errors import ImageError
    from ferkit.core.taxonomy import Taxonomy
    from ferkit.recognize.sinks import ResultSink

app = new_app()

ESTIMATE = "estimate"
"""The value of ``--prior`` that estimates it from the photos."""


class Format(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"


@app.command()
def predict(
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            help="Photos (JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF), folders, patterns in quotes, "
            "or - for standard input.",
            show_default=False,
        ),
    ] = None,
    files_from: Annotated[
        str | None,
        option(
            "--files-from",
            "A file with the paths of photos, one a line or between NUL bytes; - for standard input.",
            metavar="FILE",
        ),
    ] = None,
    model: ModelOption = None,
    output_format: Annotated[Format | None, option("--format -f", "How to print.", "table")] = None,
    as_json: JsonOption = False,
    all_columns: Annotated[
        bool, option("--all", "Table with whole names, all probabilities and quality.")
    ] = False,
    annotate: Annotated[
        Path | None, option("--annotate", "Folder for copies of the photos with the faces drawn in.")
    ] = None,
    explain: Annotated[
        bool, option("--explain", "Draw class activation maps into the annotated copies.")
    ] = False,
    landmarks: Annotated[
        bool, option("--landmarks/--no-landmarks", "Draw landmarks into the annotated copies.", default=True)
    ] = True,
    detector: DetectorOption = "yunet",
    min_face: MinFaceOption = None,
    min_confidence: MinConfidenceOption = 0.0,
    max_error: MaxErrorOption = None,
    prior: Annotated[
        str | None,
        option("--prior", f"{PRIOR_HELP}; estimate: from the photos, which are read twice.", "its own"),
    ] = None,
    taxonomy: LabelSetOption = None,
    tta: TtaOption = "none",
    provider: ProviderOption = None,
    threads: NetworkThreadsOption = None,
    workers: Annotated[
        str | None,
        option(
            "--workers",
            "Photos at a time, each on one core; for --engine ray workers, or LEAST:MOST of them.",
            "the threads of --threads",
        ),
    ] = None,
    max_pixels: Annotated[
        int | None, option("--max-pixels", "Refuse larger photos.", "89 million", min=1)
    ] = None,
    output: Annotated[
        str | None,
        option(
            "--output -o",
            "Write a table of faces and one of photos: a file (.parquet, .csv, .jsonl) or a folder of "
            "Parquet parts. The inputs may then also be tar shards, tables, and URIs.",
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        option("--engine", "This machine, or Ray Data on one or many machines.", default=True),
    ] = "local",
    address: Annotated[
        str | None,
        option(
            "--address", "Address of a Ray cluster; auto on one of its nodes.", "start Ray on this machine"
        ),
    ] = None,
    worker_cores: Annotated[
        int | None, option("--worker-cores", "Cores of a worker of Ray.", "1", min=1)
    ] = None,
    worker_gpus: Annotated[
        float | None, option("--worker-gpus", "GPUs of a worker of Ray, or a share.", "0", min=0)
    ] = None,
    column: Annotated[
        str | None,
        option(
            "--column",
            "Column of the input tables with the photos or their paths.",
            "the first of bytes, or path",
        ),
    ] = None,
    keep: Annotated[
        str | None, option("--keep", "Columns of the input to carry into the output, such as id,split.")
    ] = None,
    flat: Annotated[bool, option("--flat", "One column per number, as in CSV.")] = False,
    resume: Annotated[bool, option("--resume", "Continue the output.")] = False,
    retry_failed: Annotated[
        bool, option("--retry-failed", "Continue the output, and read again what failed.")
    ] = False,
    metrics: Annotated[
        Path | None, option("--metrics", "Write the counts to this file for Prometheus.")
    ] = None,
    clips: Annotated[bool, option("--clips", "The inputs are clips.")] = False,
    fps: Annotated[
        float | None, option("--fps", "Read at most this many frames of a clip per second.", "all", min=0.001)
    ] = None,
) -> None:
    """Find the faces in photos and classify their expressions.

    Each face has a box, a score, landmarks, quality, a label and all probabilities. A photo without a face is
    no error. A photo that cannot be read, or that gets no annotated copy, is reported on stderr and skipped,
    and the exit status is 1. Ctrl-C ends early and prints the results so far.

    With --output two tables are written in place of printing, for millions of photos, tar shards, tables and
    URIs, on this machine or on a Ray cluster; see docs/batch.md.
    """
    if as_json and output_format not in (None, Format.JSON):
        raise typer.BadParameter(f"it contradicts --format {output_format}", param_hint="--json")
    kind = Format.JSON if as_json else output_format or Format.TABLE
    if kind is not Format.TABLE:
        refuse_options({"--all": all_columns}, f"it is for tables; {kind} has all columns")
    if annotate is None:
        refuse_options(
            {"--explain": explain, "--no-landmarks": not landmarks},
            "it is for the annotated copies; add --annotate FOLDER",
        )
    on_ray = {"--address": address, "--worker-cores": worker_cores, "--worker-gpus": worker_gpus}
    if engine != "ray":
        refuse_options(
            on_ray | {f"--workers {workers}": ":" in (workers or "")}, "it is for Ray; add --engine ray"
        )
    from ferkit.batch import STDIN
    from ferkit.batch.copies import AnnotatedCopies
    from ferkit.batch.loop import process_photos
    from ferkit.batch.sources import Lookup, find_photos
    from ferkit.core.errors import ModelFileError
    from ferkit.core.images import DEFAULT_MAX_PIXELS
    from ferkit.core.runtime import usable_cores
    from ferkit.recognize import Recognizer

    photos = photos or []
    if not photos and files_from is None:
        raise typer.BadParameter("name photos, folders or patterns, or a list of them by --files-from")
    if STDIN in photos and files_from == STDIN:
        raise typer.BadParameter(
            "the standard input is a photo already, by the argument -", param_hint="--files-from"
        )
    if prior == ESTIMATE and (STDIN in (*photos, files_from) or output is not None):
        raise typer.BadParameter(
            "the photos are read twice, which neither the standard input nor --output can be",
            param_hint=f"--prior {ESTIMATE}",
        )
    settings: dict[str, Any] = {
        "model": model,
        "detector": detector,
        "min_face": min_face,
        "min_confidence": min_confidence,
        "max_error": max_error,
        "prior": None if prior == ESTIMATE else prior,
        "taxonomy": taxonomy,
        "tta": as_tta_mode(tta),
        "providers": provider,
        "threads": threads,
        "max_pixels": DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels,
    }
    listed = [] if files_from is None else _read_list(files_from)
    if output is not None:
        printing = {"--format": output_format, "--json": as_json, "--all": all_columns}
        refuse_options(printing | {"--annotate": annotate}, "--output writes tables in place of printing")
        if not clips:
            refuse_options({"--fps": fps}, "it is for clips; add --clips")
        if STDIN in photos:
            raise typer.BadParameter("standard input is no input of --output", param_hint="-")
        gc.enable()
        predict_table(
            photos,
            listed,
            settings,
            TableOptions(
                output=output,
                engine=engine,
                address=address,
                workers=workers,
                cores=worker_cores or 1,
                gpus=worker_gpus or 0.0,
                column=column,
                keep=tuple(keep.split(",")) if keep else (),
                flat=flat,
                resume=resume or retry_failed,
                retry_failed=retry_failed,
                metrics=metrics,
                clips=clips,
                fps=fps,
            ),
        )
        return
    given: dict[str, object] = {
        "--engine": engine if engine != "local" else None,
        "--column": column,
    }
    given |= on_ray | {"--keep": keep, "--flat": flat, "--resume": resume, "--retry-failed": retry_failed}
    refuse_options(given | {"--metrics": metrics, "--clips": clips, "--fps": fps}, "only with --output")
    at_a_time = worker_range(workers)[1] or threads or usable_cores()
    names = [*photos, *listed]
    if len(names) == 1 and (names[0] == STDIN or os.path.isfile(names[0])):  # noqa: PTH113
        at_a_time = 1  # one photo, by all threads
    elif at_a_time > 1:
        settings["threads"] = 1
    recognizer = Recognizer(**settings)
    if not gc.isenabled():
        gc.freeze()  # modules are no garbage
        gc.enable()
    if explain and not recognizer.info.head(recognizer.taxonomy.id).cam:
        raise ModelFileError(
            f"model {recognizer.info.name!r} has no class activation maps for {recognizer.taxonomy.id!r}, so "
            "--explain cannot be used; networks that end in global average pooling have them"
        )
    # Pillow's warnings about damaged files would mix with our lines; unreadable photos are errors of ours.
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    if prior == ESTIMATE:
        found = find_photos(photos, listed=listed, leave_out=annotate)
        estimated = recognizer.estimate_prior(found, workers=at_a_time)
        shares = sorted(estimated.items(), key=lambda item: -item[1])
        remark(f"estimated prior: {', '.join(f'{label} {100 * p:.0f} %' for label, p in shares)}")
        recognizer = Recognizer(**settings | {"prior": estimated})
    copies = None
    if annotate is not None:
        copies = AnnotatedCopies(
            annotate, [*photos, *listed], explainer=recognizer if explain else None, landmarks=landmarks
        )
    passed_over: dict[str, int] = {}
    stop = threading.Event()
    lookup = Lookup(
        find_photos(photos, listed=listed, leave_out=annotate, passed_over=passed_over, stop=stop), stop
    )
    # Read before Ctrl-C is caught: it may never end.
    stdin = _read_stdin() if STDIN in photos else None
    # A bar would mix with results that are printed while photos are read.
    hidden = kind is not Format.TABLE and sys.stdout.isatty()
    with (
        stopping(stop) as interrupts,
        _sink(kind, recognizer.taxonomy, full=all_columns) as sink,
        progress("photos", lambda: lookup.found if lookup.complete else None, hidden=hidden) as advance,
    ):
        summary = process_photos(
            recognizer,
            lookup,
            sink,
            copies=copies,
            stdin=stdin,
            stop=stop,
            workers=at_a_time,
            on_photo=advance,
            on_error=lambda message: remark(f"error: {message}"),
        )
    if summary.copied:
        some = "1 annotated copy" if summary.copied == 1 else f"{summary.copied} annotated copies"
        remark(f"wrote {some} into {annotate}{os.sep}")
    if passed_over:
        remark(passed_over_remark(passed_over))
    several = lookup.found > 1 or not lookup.complete
    if summary.unreadable and several:
        remark(f"{summary.unreadable} of {lookup.total} photos could not be read")
    if summary.uncopied and several:
        remark(f"{summary.uncopied} of {lookup.total} photos have no annotated copy")
    if interrupts.received is not None:
        remark(f"interrupted; {summary.done} of {lookup.total} photos were read")
        raise typer.Exit(128 + interrupts.received)
    if summary.unreadable or summary.uncopied:
        raise typer.Exit(1)


def _read_stdin() -> bytes | ImageError:
    from ferkit.core.errors import ImageError
    from ferkit.core.images import read_stream

    try:
        return read_stream(sys.stdin.buffer, "standard input")
    except ImageError as error:
        return error


def _read_list(name: str) -> list[str]:
    """Return the paths in a list of photos.

    Raises:
        FerkitError: If it cannot be read, or has no paths.
    """
    from ferkit.batch import STDIN
    from ferkit.batch.sources import read_list
    from ferkit.core.errors import FerkitError

    shown = "standard input" if name == STDIN else name
    try:
        content = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
        paths = read_list(content)
    except OSError as error:
        raise FerkitError(f"cannot read the list of photos {shown}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FerkitError(
            f"cannot read the list of photos {shown}: it is not valid {error.encoding}; write it as UTF-8"
        ) from error
    if not paths:
        raise FerkitError(f"{shown} lists no photo; one path a line was expected")
    return paths


def _sink(kind: Format, taxonomy: Taxonomy, *, full: bool) -> ResultSink:
    from ferkit.cli.photo_table import PhotoTable
    from ferkit.recognize.results import photo_columns
    from ferkit.recognize.sinks import make_sink

    if kind is Format.TABLE:
        return PhotoTable(sys.stdout, taxonomy.labels, full=full)
    return make_sink(kind, sys.stdout, photo_columns(taxonomy.labels))
