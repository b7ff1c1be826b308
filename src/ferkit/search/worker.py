"""What runs in a worker of Ray: one trial, and the counting of networks before any trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ferkit.core.errors import FerkitError, OutputError
from ferkit.data import FaceDataset
from ferkit.search.records import locked
from ferkit.training.history import Row
from ferkit.training.memory import memory_errors, out_of_memory
from ferkit.training.recipe import Recipe, parse_recipe
from ferkit.training.runs import CHECKPOINT, RUN

MOST_HELD = 20_000_000
"""Weights of networks that were counted and are still in memory, at most: 80 MB."""

LOCK_PATIENCE = 300.0
"""Seconds to wait for a lost worker that still writes into the same run."""


def make_reporter(recipe: Recipe, earlier: Sequence[Row]) -> Any:
    """Return a Keras callback that reports a run to Tune, with the epochs that an earlier attempt left.

    It holds back the recipe's last epoch until the run is closed, so that nobody stops it before.
    """
    import keras

    class Reporter(keras.callbacks.Callback):  # type: ignore[misc]
        last: Row | None = None

        def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
            report("started", len(earlier))
            for row in earlier:
                self.report_row(row)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.report_row({"epoch": epoch + 1, **(logs or {})})

        def report_row(self, row: Row) -> None:
            self.last = row
            if row["epoch"] < recipe.epochs:
                report("epoch", int(row["epoch"]), row)

    return Reporter()


def report(phase: str, epoch: int, row: Row | None = None, **more: Any) -> None:
    """Report to Tune; ``epoch`` and ``val_accuracy`` are what its schedulers look at."""
    from ray import tune

    metrics: dict[str, Any] = {"phase": phase, "epoch": epoch, **more}
    if row is not None:
        metrics.update(row=dict(row), val_accuracy=row["val_accuracy"])
    tune.report(metrics)


def run_trial(
    config: Mapping[str, Any], dataset: FaceDataset | None = None, cores: int = 1, command: Sequence[str] = ()
) -> None:
    """Train one configuration into its run's folder, or go on with it where an earlier attempt left it.

    What fails for a reason of its own (a loss that is not finite, too little memory) is reported as failed;
    what cannot be written stops the search; every other exception is Tune's to retry.
    """
    assert dataset is not None
    limit_threads(cores)
    from ferkit.training.backend import keras
    from ferkit.training.state import read_archive
    from ferkit.training.trainer import train

    folder, recipe = Path(config["folder"]), parse_recipe(config["recipe"], "recipe")
    # A worker is used for many trials; what the last one built is not needed any more.
    keras.backend.clear_session()
    with locked(Path(config["lock"]), LOCK_PATIENCE, "worker"):
        resume = (folder / CHECKPOINT).exists()
        earlier = read_archive(folder / CHECKPOINT)[1]["history"] if resume else []
        if not resume:
            (folder / RUN).unlink(missing_ok=True)
        reporter = make_reporter(recipe, earlier)
        try:
            result = train(
                recipe,
                dataset,
                folder,
                resume=resume,
                command=command,
                callbacks=[reporter],
                tensorboard=False,
            )
        except OutputError as error:
            report("failed", 0, reason=str(error), halt=True)
            return
        except FerkitError as error:
            report("failed", 0, reason=str(error), halt=False)
            return
    if reporter.last is None:  # The earlier attempt had done all but tell.
        for row in earlier[:-1]:
            report("epoch", int(row["epoch"]), row)
    report("finished", len(result.history), result.history[-1])


def limit_threads(cores: int) -> None:
    """Let the framework compute with as many threads as the trial was given cores."""
    from ferkit.training.backend import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if tf.config.threading.get_intra_op_parallelism_threads() != cores:
            tf.config.threading.set_intra_op_parallelism_threads(cores)
            tf.config.threading.set_inter_op_parallelism_threads(1)


class Surveyor:
    """Builds networks to count what they cost; an actor, so that the driver stays small."""

    def __init__(self) -> None:
        self.held = 0

    def count(
        self, recipe: Mapping[str, Any], heads: Mapping[str, int], size: int
    ) -> tuple[int, float] | str:
        """Return parameters and MMAC of a recipe's network, or why it cannot be built."""
        from ferkit.models import build_model, count_macs
        from ferkit.training.backend import keras
        from ferkit.training.network import resize_network

        model, sides = recipe["model"], recipe["progressive"]["sizes"]
        try:
            network = build_model(model["name"], heads, input_size=size, **model["params"])
            counted = int(network.count_params()), count_macs(network) / 1e6
            for side in sides:
                resize_network(network, side)
        except FerkitError as error:
            return str(error)
        except memory_errors() as error:
            self.held = MOST_HELD
            return out_of_memory(error)
        else:
            self.held += counted[0]
            return counted
        finally:
            # Clearing takes longer than building, so it is not done for every small network.
            if self.held >= MOST_HELD:
                keras.backend.clear_session()
                self.held = 0


def look_around(file: str) -> tuple[str, bool]:
    """Return a node's version of ferkit, and whether it sees a file of the driver's."""
    from ferkit import __version__

    return __version__, Path(file).exists()
