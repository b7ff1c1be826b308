"""``ferkit predict -o``: many photos or clips into tables, on this machine or on Ray Data."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from ferkit.cli.common import console, in_words, passed_over_remark, remark
from ferkit.core.errors import FerkitError
from ferkit.core.interrupts import stopping

if TYPE_CHECKING:
    from ferkit.batch.inputs import Inputs
    from ferkit.batch.run import Counts

_LINE_SECONDS = 30.0  # between two lines of progress where there is no terminal
_STORE = 256 << 20  # bytes of Ray's object store on this machine


@dataclass(frozen=True, slots=True)
class TableOptions:
    """The options of ``ferkit predict`` that need ``--output``; see its help."""

    output: str
    engine: Literal["local", "ray"]
    address: str | None
    workers: str | None
    cores: int
    gpus: float
    column: str | None
    keep: tuple[str, ...]
    flat: bool
    resume: bool
    retry_failed: bool
    metrics: Path | None
    clips: bool
    fps: float | None


def predict_table(
    names: list[str], listed: list[str], settings: dict[str, Any], options: TableOptions
) -> None:
    """Recognize photos or clips, and write the tables.

    ``settings`` are the arguments of :class:`ferkit.Recognizer`.
    """
    from ferkit.core.extras import require

    on_ray = options.engine == "ray"
    for module in ("pyarrow", "fsspec", *(["ray.data"] if on_ray else [])):
        require(module, "cluster" if on_ray else "batch")
    from ferkit.batch.engine import Engine
    from ferkit.batch.inputs import Inputs
    from ferkit.batch.output import Output
    from ferkit.batch.ray_engine import RayWorkers, run_on_ray
    from ferkit.batch.run import Counts, describe, write_batch
    from ferkit.batch.tables import Tables
    from ferkit.core.modelfile import resolve_model
    from ferkit.core.raystart import ray_running
    from ferkit.core.runtime import usable_cores
    from ferkit.recognize import Recognizer

    least, most = worker_range(options.workers)
    workers = options.cores if on_ray else most or settings["threads"] or usable_cores()
    providers = settings["providers"]
    if on_ray:  # The other nodes may not have the model's file, and this one no GPU.
        model = resolve_model(settings["model"]).read_bytes()
        settings |= {"model": model, "threads": options.cores, "providers": None}
    elif workers > 1:
        settings["threads"] = 1
    recognizer = Recognizer(**settings)
    passed_over: dict[str, int] = {}
    inputs = Inputs(
        names, listed, column=options.column, keep=options.keep, clips=options.clips, passed_over=passed_over
    )
    tables = Tables(
        recognizer.taxonomy.labels,
        describe(recognizer, settings, fps=options.fps),
        inputs.keep,
        flat=options.flat or options.output.lower().endswith(".csv"),
        clips=options.clips,
    )
    output = Output(options.output, tables, resume=options.resume, retry_failed=options.retry_failed)
    before = len(output.done)
    engine = Engine(recognizer, tables, output.done, workers, options.fps)
    # Pillow's warnings about damaged files would mix with our lines; unreadable photos are errors of ours.
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    stop = threading.Event()
    tasks = inputs.tasks(output.done, stop)
    with contextlib.ExitStack() as stack:
        if on_ray:
            pool = RayWorkers(least, most, options.cores, options.gpus, providers and tuple(providers))
            cores = (most or least) * options.cores
            stack.enter_context(
                ray_running(options.address, cores=cores, memory=_STORE, fail=FerkitError, log=remark)
            )
        interrupts = stack.enter_context(stopping(stop))
        chunks = run_on_ray(engine, tasks, pool, stop) if on_ray else engine.run(tasks, stop)
        counts = Counts(before=before)
        threading.Thread(target=lambda: _count(inputs, counts, stop), daemon=True).start()
        advance = stack.enter_context(_progress(counts, "clips" if options.clips else "photos"))
        write_batch(chunks, output, counts, stop=stop, metrics=options.metrics, on_chunk=advance)
    _summarize(counts, output.files(), passed_over, options)
    if interrupts.received is not None:
        remark("interrupted; the tables hold what is done, and --resume continues")
        raise typer.Exit(128 + interrupts.received)
    if counts.failed:
        raise typer.Exit(1)


def worker_range(workers: str | None) -> tuple[int, int | None]:
    """Return the least and the largest number of workers: ``4`` is both, ``2:16`` is a range."""
    if workers is None:
        return 1, None
    least, colon, most = workers.partition(":")
    if not least.isdigit() or not (most if colon else least).isdigit():
        raise typer.BadParameter(
            f"a number, or LEAST:MOST, was expected; received {workers!r}", param_hint="--workers"
        )
    numbers = int(least), int(most or least)
    if not 1 <= numbers[0] <= numbers[1]:
        raise typer.BadParameter(f"received {workers!r}", param_hint="--workers")
    return numbers


def _count(inputs: Inputs, counts: Counts, stop: threading.Event) -> None:
    with contextlib.suppress(FerkitError):  # raised where the inputs are read
        total = inputs.count(stop)
        if not stop.is_set():
            counts.total = total


@contextlib.contextmanager
def _progress(counts: Counts, unit: str) -> Iterator[Callable[[], None]]:
    """Yield a function that shows the counts on stderr: in a bar, or without a terminal in lines."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        shown = 0.0

        def line() -> None:
            nonlocal shown
            if counts.seconds - shown >= _LINE_SECONDS:
                shown = counts.seconds
                remark(_state(counts, unit))

        yield line
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=screen, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(_state(counts, unit), total=None)
        yield lambda: bar.update(
            task,
            description=_state(counts, unit),
            total=None if counts.total is None else counts.total - counts.before,
            completed=counts.photos,
        )


def _state(counts: Counts, unit: str) -> str:
    done = counts.before + counts.photos
    of = "" if counts.total is None else f" of {counts.total:,}"
    rate = counts.photos / counts.seconds
    left = ""
    if counts.total is not None and rate:
        left = f", {in_words(max(0, counts.total - done) / rate)} left"
    return (
        f"{done:,}{of} {unit}, {rate:.1f}/s, {counts.faces / counts.seconds:.1f} faces/s, "
        f"{counts.failed:,} failed{left}"
    )


def _summarize(
    counts: Counts, files: tuple[str, ...], passed_over: dict[str, int], options: TableOptions
) -> None:
    unit = "clips" if options.clips else "photos"
    some = unit.removesuffix("s") if counts.photos == 1 else unit
    faces = "1 face" if counts.faces == 1 else f"{counts.faces:,} faces"
    statuses = ", ".join(f"{number:,} {status}" for status, number in counts.statuses.items())
    before = f" ({counts.before:,} were done before)" if counts.before else ""
    remark(
        f"{counts.photos:,} {some}: {statuses}{before}; {faces}; {in_words(counts.seconds)}, "
        f"{counts.photos / counts.seconds:.1f} {unit}/s"
    )
    if passed_over:
        remark(passed_over_remark(passed_over))
    if counts.failed:
        remark(f"the column `error` of {files[1]} says why; --retry-failed tries again")
    remark(f"wrote {' and '.join(files)}")
