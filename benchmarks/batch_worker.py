"""Measures photos per second of a batch's engines, and of a plain loop, in a separate process."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jobs import serve, take_cores

CORES = take_cores()
STACK = ExitStack()


@cache
def _recognizer(threads: int) -> Any:
    from ferkit import Recognizer

    return Recognizer(threads=threads)


def loop(folder: str) -> dict[str, Any]:
    """Return photos per second of a loop over ``Recognizer.predict``, whose networks use all cores."""
    recognizer = _recognizer(CORES)
    paths = sorted(map(str, Path(folder).iterdir()))
    recognizer.predict(paths[0])
    start = time.perf_counter()
    for path in paths:
        recognizer.predict(path)
    return {"photos_per_s": len(paths) / (time.perf_counter() - start)}


def engine(folder: str, kind: str, workers: int) -> dict[str, Any]:
    """Return photos per second from an engine's first rows to its last, and processor seconds per photo.

    So the start of workers is left out. When the first rows of Ray come, each worker has done a task.
    """
    from ferkit.batch.engine import Engine
    from ferkit.batch.inputs import TASK_PHOTOS, Inputs
    from ferkit.batch.output import Output
    from ferkit.batch.ray_engine import RayWorkers, run_on_ray
    from ferkit.batch.run import Counts, describe, write_batch
    from ferkit.batch.tables import Tables
    from ferkit.core.errors import FerkitError
    from ferkit.core.images import DEFAULT_MAX_PIXELS
    from ferkit.core.raystart import ray_running

    settings = {"model": None, "min_face": None, "min_confidence": 0.0, "tta": "none"}
    recognizer = _recognizer(1)
    tables = Tables(
        recognizer.taxonomy.labels,
        describe(recognizer, settings | {"max_pixels": DEFAULT_MAX_PIXELS}, fps=None),
    )
    inputs, stop, counts = Inputs([folder]), threading.Event(), Counts()
    seen: list[tuple[float, int]] = []
    with TemporaryDirectory() as out:
        output = Output(f"{out}/table", tables)
        if kind == "local":
            chunks = Engine(recognizer, tables, output.done, workers).run(inputs.tasks(output.done))
        else:
            STACK.enter_context(
                ray_running(None, cores=CORES, memory=256 << 20, fail=FerkitError, log=lambda _: None)
            )
            alone = Engine(recognizer, tables, output.done)
            chunks = run_on_ray(alone, inputs.tasks(output.done), RayWorkers(workers, workers), stop)
        processor = time.process_time()
        write_batch(
            chunks,
            output,
            counts,
            stop=stop,
            on_chunk=lambda: seen.append((time.perf_counter(), counts.photos)),
        )
        processor = time.process_time() - processor
    (start, first), (end, last) = seen[0], seen[-1]
    if kind == "ray":
        first = TASK_PHOTOS * workers
    return {"photos_per_s": (last - first) / (end - start), "processor": processor / last}


if __name__ == "__main__":
    with STACK:
        serve({"loop": loop, "engine": engine})
