"""The engine of a batch in the workers of Ray Data, on one machine or many."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from ferkit.batch.engine import Engine
from ferkit.batch.inputs import Item, Task
from ferkit.batch.tables import Chunk
from ferkit.core.errors import FerkitError, ImageError

_BLOCKS = 20_000  # of tasks
_DEATHS = 2  # of workers at a photo


@dataclass(frozen=True, slots=True)
class RayWorkers:
    """The workers of Ray: each is a process with the models, on one node."""

    least: int = 1  # workers that always run; where tasks wait, the pool grows to ``most``
    most: int | None = None  # largest number of workers; None: as many as the cluster has room for
    cores: int = 1  # cores of a worker
    gpus: float = 0.0  # GPUs of a worker; a fraction shares one
    # ONNX Runtime's execution providers in the workers; None: those of the engine's recognizer.
    providers: tuple[str, ...] | None = None


class _Ledger:
    """An actor that remembers how often each task was begun, and the photos at which its workers died."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()
        self._at: dict[int, str] = {}
        self._deaths: Counter[tuple[int, str]] = Counter()

    def begin(self, task: int) -> bool:
        """Return whether the task was begun before."""
        if task in self._at:
            self._deaths[task, self._at.pop(task)] += 1
        self._begun[task] += 1
        return self._begun[task] > 1

    def note(self, task: int, source: str) -> int:
        """Note the photo that is read next; return how many workers died at it."""
        self._at[task] = source
        return self._deaths[task, source]

    def end(self, task: int) -> None:
        """Note that the last photo was read."""
        self._at.pop(task, None)


@dataclass(frozen=True, slots=True)
class _NotedTask:
    """A task that notes its photos one by one, and leaves out the one that ends its workers."""

    task: Task
    note: Callable[[str], int]

    def read(self, is_done: Callable[[str], bool]) -> Iterator[Item]:
        for item in self.task.read(is_done):
            deaths = self.note(item.source or "")
            if deaths >= _DEATHS:
                yield replace(item, photo=ImageError(f"{deaths} workers died while they read {item.source}"))
            else:
                yield item


class _Worker:
    """What runs in Ray's workers: an engine, and one task per call."""

    def __init__(self, engine: Engine, providers: tuple[str, ...] | None, ledger: Any) -> None:
        if providers is not None:
            engine = replace(engine, recognizer=engine.recognizer.copy(providers=providers))
        self._engine, self._ledger = engine, ledger

    def __call__(self, rows: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        for number, task in zip(map(int, rows["number"]), rows["task"], strict=True):
            for chunk in self._run(number, task):
                yield {"faces": [_to_bytes(chunk.faces)], "photos": [_to_bytes(chunk.photos)]}
            self._tell("end", number)

    def _run(self, number: int, task: Task) -> Iterator[Chunk]:
        if not self._tell("begin", number):
            return self._engine.run([task])
        # One photo at a time, so that the one noted is the one that is read.
        one_by_one = replace(self._engine, workers=1)
        return one_by_one.run([_NotedTask(task, partial(self._tell, "note", number))])

    def _tell(self, what: str, *arguments: Any) -> Any:
        """Call a method of the ledger."""
        import ray

        return ray.get(getattr(self._ledger, what).remote(*arguments))


def run_on_ray(
    engine: Engine, tasks: Iterable[Task], workers: RayWorkers, stop: threading.Event
) -> Iterator[Chunk]:
    """Yield the rows of tasks, in order, from a pool of Ray's workers; Ray runs.

    A task whose worker or node is lost runs again, and its rows come once. Where that happens, its photos are
    noted, and one at which two more workers die is ``unreadable``.

    All tasks are taken first. When ``stop`` is set, the rows that are not there yet are given up.

    Raises:
        FerkitError: If a worker raises an error.
    """
    import ray
    import ray.data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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
    # On this node, which cannot be lost without the run.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    ledger = ray.remote(num_cpus=0)(_Ledger).options(scheduling_strategy=here).remote()
    rows = [{"number": number, "task": task} for number, task in enumerate(tasks)]
    results = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        _Worker,
        batch_size=1,
        fn_constructor_args=(engine, workers.providers, ledger),
        compute=ray.data.ActorPoolStrategy(min_size=min(workers.least, most), max_size=most),
        num_cpus=workers.cores,
        num_gpus=workers.gpus or None,
    )
    try:
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for faces, photos in zip(batch["faces"], batch["photos"], strict=True):
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
