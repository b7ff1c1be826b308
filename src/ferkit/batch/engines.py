"""The engines of a batch: the same code on the cores of this machine, or in the workers of Ray Data."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ferkit.batch.inputs import Item, Task
from ferkit.batch.tables import NO_FACE, OK, UNREADABLE, Chunk, Tables
from ferkit.core.errors import DetectorError, FerkitError, ImageError, VideoError
from ferkit.recognize.pipeline import in_batches, in_threads
from ferkit.recognize.results import Photo, Unreadable

if TYPE_CHECKING:
    from ferkit.recognize import Recognizer

_PENDING = 64  # photos that wait for the network, so that progress is seen
_CLIP_ROWS = 4096  # rows of a clip that are Python objects at a time
_BLOCKS = 20_000  # of tasks in Ray


@dataclass(frozen=True, slots=True)
class Engine:
    """Recognizes tasks; pickled to the workers of Ray.

    Attributes:
        recognizer: Finds and classifies the faces.
        tables: What the tables hold.
        is_done: Whether a source is in the output already.
        workers: Photos or clips at a time.
        fps: Frames per second of a clip that are read at most; None for all.
        chunk: Photos of a chunk.
    """

    recognizer: Recognizer
    tables: Tables
    is_done: Callable[[str], bool]
    workers: int = 1
    fps: float | None = None
    chunk: int = 32

    def run(self, tasks: Iterable[Task], stop: threading.Event | None = None) -> Iterator[Chunk]:
        """Yield the rows of tasks, in order.

        Args:
            tasks: The tasks.
            stop: No more photos are taken once it is set; the rows of those taken are still yielded.
        """
        items = self._items(tasks, threading.Event() if stop is None else stop)
        if self.tables.clips:
            return in_threads(self._read_clip, items, self.workers, 2 * self.workers)
        batches = in_batches(self._recognize(items), lambda batch: len(batch) >= self.chunk, "photos")
        return (self.tables.build(batch) for batch in batches if batch)

    def _items(self, tasks: Iterable[Task], stop: threading.Event) -> Iterator[Item]:
        for task in tasks:
            for item in task.read(self.is_done):
                if stop.is_set():
                    return
                yield item

    def _recognize(self, items: Iterable[Item]) -> Iterator[tuple[Photo | Unreadable, tuple[Any, ...]]]:
        kept: deque[tuple[Any, ...]] = deque()

        def taken() -> Iterator[tuple[str | None, Any]]:
            for item in items:
                kept.append(item.kept)
                yield item.source, item.photo

        for result in self.recognizer.predict_each(taken(), pending=_PENDING, workers=self.workers):
            yield result, kept.popleft()

    def _read_clip(self, item: Item) -> Chunk:
        """Return the rows of a clip."""
        start = time.perf_counter()
        common = self.tables.common(item.source, item.kept)
        tables: list[pa.Table] = [self.tables.faces.empty_table()]
        rows: list[dict[str, Any]] = []
        counts: Counter[str] = Counter()
        length, width, height = 0.0, 0, 0
        try:
            if not isinstance(item.photo, str):
                raise (
                    item.photo
                    if isinstance(item.photo, ImageError)
                    else VideoError(f"clips are read from files; copy {item.source} to this machine")
                )
            with self.recognizer.video(item.photo, fps=self.fps) as frames:
                for frame in frames:
                    rows += [common | row for row in self.tables.frame_rows(frame)]
                    counts.update(frames=1, faces=len(frame.faces))
                    length += frame.duration
                    width, height = max(width, frame.width), max(height, frame.height)
                    if len(rows) >= _CLIP_ROWS:
                        tables.append(pa.Table.from_pylist(rows, schema=self.tables.faces))
                        rows = []
                tables.append(pa.Table.from_pylist(rows, schema=self.tables.faces))
                clip = {
                    **{"status": OK if counts["faces"] else NO_FACE, "width": width, "height": height},
                    **{"faces": counts["faces"], "frames": counts["frames"], "seconds": length},
                    "error": "; ".join(frames.notes) or None,
                }
        except (VideoError, DetectorError, ImageError) as error:
            tables = tables[:1]
            clip = {"status": UNREADABLE, "error": str(error)}
        row = common | clip | {"milliseconds": 1000 * (time.perf_counter() - start)}
        return Chunk(pa.concat_tables(tables), pa.Table.from_pylist([row], schema=self.tables.photos))


@dataclass(frozen=True, slots=True)
class RayWorkers:
    """The workers of Ray: each is a process with the models, on one node.

    Attributes:
        least: Workers that always run; where tasks wait, the pool grows to ``most``.
        most: Largest number of workers; None: as many as the cluster has room for.
        cores: Cores of a worker.
        gpus: GPUs of a worker; a fraction shares one.
        providers: ONNX Runtime's execution providers in the workers; None: those of the engine's recognizer.
    """

    least: int = 1
    most: int | None = None
    cores: int = 1
    gpus: float = 0.0
    providers: tuple[str, ...] | None = None


class _Worker:
    """What runs in Ray's workers: an engine, and one task per call."""

    def __init__(self, engine: Engine, providers: tuple[str, ...] | None) -> None:
        if providers is not None:
            engine = replace(engine, recognizer=engine.recognizer.copy(providers=providers))
        self._engine = engine

    def __call__(self, rows: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        for task in rows["task"]:
            for chunk in self._engine.run([task]):
                yield {"faces": [_to_bytes(chunk.faces)], "photos": [_to_bytes(chunk.photos)]}


def run_on_ray(
    engine: Engine, tasks: Iterable[Task], workers: RayWorkers, stop: threading.Event
) -> Iterator[Chunk]:
    """Yield the rows of tasks, in order, from a pool of Ray's workers; Ray runs.

    A task whose worker or node is lost runs again, and its rows come once.

    Args:
        engine: What the workers do.
        tasks: The tasks; all of them are taken first.
        workers: The workers.
        stop: When it is set, the rows that are not there yet are given up.

    Raises:
        FerkitError: If a worker raises an error.
    """
    import ray
    import ray.data

    tasks = list(tasks)
    if not tasks or stop.is_set():
        return
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised as well
    settings = ray.data.DataContext.get_current()
    settings.enable_progress_bars = False
    settings.execution_options.preserve_order = True
    blocks = min(len(tasks), _BLOCKS)
    room = ray.cluster_resources()
    fits = int(room.get("CPU", 1) // workers.cores)
    if workers.gpus:
        fits = min(fits, int(room.get("GPU", 0) / workers.gpus))
    most = min(max(workers.least, workers.most or fits), blocks)
    results = ray.data.from_items([{"task": task} for task in tasks], override_num_blocks=blocks).map_batches(
        _Worker,
        batch_size=1,
        fn_constructor_args=(engine, workers.providers),
        compute=ray.data.ActorPoolStrategy(min_size=min(workers.least, most), max_size=most),
        num_cpus=workers.cores,
        num_gpus=workers.gpus or None,
    )
    try:
        for rows in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for faces, photos in zip(rows["faces"], rows["photos"], strict=True):
                yield Chunk(_from_bytes(faces.as_buffer()), _from_bytes(photos.as_buffer()))
                if stop.is_set():
                    return
    except ray.exceptions.RayError as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise FerkitError(f"a worker of Ray failed: {last}") from error


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _from_bytes(content: pa.Buffer) -> pa.Table:
    return pa.ipc.open_stream(content).read_all()
