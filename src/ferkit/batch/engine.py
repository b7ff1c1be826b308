"""The engine of a batch: tasks in, rows out, on the cores of one machine."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ferkit.batch.inputs import Item, Task
from ferkit.batch.tables import NO_FACE, OK, UNREADABLE, Chunk, Tables
from ferkit.core.errors import DetectorError, ImageError, VideoError
from ferkit.recognize.pipeline import in_batches, in_threads
from ferkit.recognize.results import Photo, Unreadable

if TYPE_CHECKING:
    from ferkit.recognize import Recognizer

_PENDING = 64  # photos that wait for the network, so that progress is seen
_CLIP_ROWS = 4096  # rows of a clip that are Python objects at a time


@dataclass(frozen=True, slots=True)
class Engine:
    """Recognizes tasks; on Ray each worker has one."""

    recognizer: Recognizer  # finds and classifies the faces
    tables: Tables  # what the tables hold
    is_done: Callable[[str], bool]  # whether a source is in the output already
    workers: int = 1  # photos or clips at a time
    fps: float | None = None  # frames per second of a clip that are read at most; None for all
    chunk: int = 32  # photos of a chunk

    def run(self, tasks: Iterable[Task], stop: threading.Event | None = None) -> Iterator[Chunk]:
        """Yield the rows of tasks, in order.

        Once ``stop`` is set no more photos are taken; the rows of those taken are still yielded, but not
        those of clips that are being read.
        """
        stop = threading.Event() if stop is None else stop
        items = self._items(tasks, stop)
        if self.tables.clips:
            read = partial(self._read_clip, stop=stop)
            clips = in_threads(read, items, self.workers, 2 * self.workers)
            return (clip for clip in clips if clip is not None)
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

    def _read_clip(self, item: Item, stop: threading.Event) -> Chunk | None:
        """Return the rows of a clip; None if ``stop`` was set before its end."""
        if stop.is_set():
            return None
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
                    if stop.is_set():
                        return None
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
