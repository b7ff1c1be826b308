"""What runs in Ray's processes: the training of trials, and the profiler that counts what networks cost."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from filelock import FileLock

from ferkit.core.errors import FerkitError, OutputError
from ferkit.core.locks import LOCK
from ferkit.data import FaceDataset
from ferkit.training.history import Row
from ferkit.training.memory import memory_errors, out_of_memory
from ferkit.training.recipe import Recipe, parse_recipe
from ferkit.training.runs import CHECKPOINT, RUN

MANY = 1_000_000
"""Parameters of a network whose memory is freed at once after it was counted; smaller ones can wait."""

LOCK_PATIENCE = 300.0
"""Seconds to wait until the worker of a killed search has left the run folder."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a worker reports of its trial."""

    # ``begin`` (rows: the epochs of an earlier attempt), ``epoch`` (one row), ``finished`` (rows: all
    # epochs), ``stopped``, ``failed`` (the trial, with a reason), ``unwritable`` (the search must end).
    kind: Literal["begin", "epoch", "finished", "stopped", "failed", "unwritable"]
    rows: list[Row] = field(default_factory=list)  # of the run's history
    reason: str = ""  # why it failed
    pid: int = field(default_factory=os.getpid)  # the worker's process


class _StopTraining(Exception):  # noqa: N818
    """Leaves the training of a trial that the pruner stopped."""


class TrialWorker:
    """An actor that trains one trial after the other. A trial waits for the driver after every epoch."""

    def __init__(self, dataset: FaceDataset, cores: int, gpus: float, command: Sequence[str]) -> None:
        limit_resources(cores, gpus)
        self.dataset, self.command = dataset, command
        self.thread = ThreadPoolExecutor(1)
        self.messages: SimpleQueue[Message | Future[Message]] = SimpleQueue()
        self.decisions: SimpleQueue[bool] = SimpleQueue()

    def start(self, recipe: Mapping[str, Any], folder: Path) -> Message:
        """Begin to train a trial, or continue it from its checkpoint; return its first message."""
        future = self.thread.submit(self._train, parse_recipe(recipe, "recipe"), folder)
        future.add_done_callback(self.messages.put)
        return self._next_message()

    def proceed(self, stop: bool) -> Message:
        """Stop the trial or let it train on; return its next message."""
        self.decisions.put(stop)
        return self._next_message()

    def _next_message(self) -> Message:
        message = self.messages.get()
        # The result of a future is the trial's last message, or raises what ended the training.
        return message.result() if isinstance(message, Future) else message

    def _report(self, message: Message) -> None:
        self.messages.put(message)
        if self.decisions.get():
            raise _StopTraining

    def _train(self, recipe: Recipe, folder: Path) -> Message:
        try:
            with FileLock(folder / LOCK, timeout=LOCK_PATIENCE):
                pass
            return Message("finished", train_trial(recipe, self.dataset, folder, self.command, self._report))
        except _StopTraining:
            return Message("stopped")
        except OutputError as error:
            return Message("unwritable", reason=str(error))
        except FerkitError as error:
            return Message("failed", reason=str(error))


def train_trial(
    recipe: Recipe,
    dataset: FaceDataset,
    folder: Path,
    command: Sequence[str],
    report: Callable[[Message], None],
) -> list[Row]:
    """Train a trial into its run folder, or continue it, and return the run's history.

    ``report`` receives the beginning and every epoch but the recipe's last; it may raise to end the training.
    """
    from ferkit.training.backend import keras
    from ferkit.training.state import read_archive
    from ferkit.training.trainer import train

    resume = (folder / CHECKPOINT).exists()
    earlier: list[Row] = read_archive(folder / CHECKPOINT)[1]["history"] if resume else []
    if not resume:
        (folder / RUN).unlink(missing_ok=True)  # A run that ended before its first checkpoint.

    class Reporter(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
            report(Message("begin", earlier))

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch + 1 < recipe.epochs:
                report(Message("epoch", [{"epoch": epoch + 1, **(logs or {})}]))

    keras.backend.clear_session()  # The worker has trained other networks before.
    return train(
        recipe,
        dataset,
        folder,
        resume=resume,
        command=command,
        callbacks=[Reporter()],
        tensorboard=False,
    ).history


_NO_GPUS = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
"""Hides the GPUs from the framework; Ray does so only in processes that have a GPU."""


def limit_resources(cores: int, gpus: float) -> None:
    """Let the framework, which is not loaded yet, use the cores and GPUs of this process and no others."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    if not gpus:
        os.environ.update(_NO_GPUS)
    from ferkit.training.backend import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(cores)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def count_network(
    recipe: Mapping[str, Any], classes: Mapping[str, int], size: int
) -> tuple[int, float] | str:
    """Return parameters and MMAC of a recipe's network, or why it cannot be built.

    ``classes`` are the numbers of classes by taxonomy id, ``size`` is the side of the faces in pixels.
    """
    os.environ.update(_NO_GPUS)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from ferkit.models import build_model, count_macs
    from ferkit.training.network import resize_network

    model = recipe["model"]
    try:
        network = build_model(model["name"], classes, input_size=size, **model["params"])
        for side in recipe["progressive"]["sizes"]:
            resize_network(network, side)
        counted = int(network.count_params()), count_macs(network) / 1e6
    except FerkitError as error:
        return str(error)
    except memory_errors() as error:
        return out_of_memory(error)
    del network
    if counted[0] > MANY:
        gc.collect()
    return counted


def inspect_node(file: str) -> tuple[str, bool]:
    """Return the version of ferkit on a node, and whether it sees a file of the driver's."""
    from ferkit import __version__

    return __version__, Path(file).exists()
