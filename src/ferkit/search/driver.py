"""A search from its first sample to its last trial: Optuna decides what is trained, Ray where."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import TrialState

from ferkit.core.errors import ModelError, OutputError, SearchError
from ferkit.core.files import output_errors
from ferkit.core.interrupts import stopping
from ferkit.core.locks import LOCK
from ferkit.core.runtime import first_line, usable_cores
from ferkit.data import FaceDataset, check_training_labels
from ferkit.search.cluster import Machine, check_nodes, count_gpus, count_slots, ray_running
from ferkit.search.sampling import Cost, CostFilter, NetworkTooLargeError, Profiler, propose
from ferkit.search.space import Space, format_values
from ferkit.search.study import (
    JOURNAL,
    Search,
    Settings,
    State,
    Trial,
    create_search,
    locked,
    mark_run,
    read_search,
    refuse_occupied,
)
from ferkit.search.worker import Message, TrialWorker, count_network
from ferkit.training.history import Row
from ferkit.training.memory import OUT_OF_MEMORY
from ferkit.training.recipe import Recipe
from ferkit.training.targets import heads_of


class Callback:
    """Base of callbacks of a search; every method does nothing."""

    def on_search_begin(self, search: Search, slots: int) -> None:
        """Called before the first trial, with the number of trials at a time; ``search`` stays up to date."""

    def on_trial_begin(self, trial: Trial) -> None:
        """Called when the training of a trial begins, or continues after an interruption."""

    def on_epoch_end(self, trial: Trial) -> None:
        """Called after an epoch; the trial waits meanwhile."""

    def on_trial_retry(self, trial: Trial) -> None:
        """Called when a worker was lost and its trial will be placed again."""

    def on_trial_end(self, trial: Trial) -> None:
        """Called when a trial has finished, was stopped, or failed."""

    def log(self, message: str) -> None:
        """Called with a line for the user that is no error."""


def search(
    space: Space,
    dataset: FaceDataset,
    out: str | Path,
    settings: Settings,
    *,
    machine: Machine | None = None,
    callbacks: Sequence[Callback] = (),
    command: Sequence[str] = (),
) -> Search:
    """Search a space.

    Before anything is trained, networks with every choice and both ends of every range are built; in random
    search, the networks of all trials.

    Args:
        space: What to search.
        dataset: Faces with the recipe's splits; Ray hands them to the workers.
        out: The search's folder; it holds no search. All nodes of a cluster see it under this path.
        settings: How to search.
        machine: Where trials run; None: on this machine, with one core each.
        callbacks: Called as the search proceeds.
        command: The command line, for the record.

    Returns:
        The search as it is in its folder.

    Raises:
        SearchError: If the space, the data or the machine do not fit, or nothing can be sampled.
        OutputError: If the folder cannot be written; what is done stays.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, after running trials were recorded as interrupted.
    """
    folder, machine = Path(out).absolute(), machine or Machine()
    _check_data(space, dataset)
    refuse_occupied(folder)
    facts = {
        "command": list(command),
        "data": _data_facts(dataset),
        "versions": {name: version(name) for name in ("ferkit", "ray", "optuna", "keras", "numpy")},
        "machine": {"cores": usable_cores(), "python": platform.python_version()},
    }
    try:
        with locked(folder), _placement(folder, machine, dataset, callbacks) as profiler:
            cost_filter = CostFilter(space, settings, profiler)
            _check_networks(cost_filter)
            trials = _sample_random(cost_filter)
            create_search(folder, space, settings, facts)
            new_worker = _worker_factory(dataset, machine, command)
            _Driver(read_search(folder), cost_filter, machine, callbacks, new_worker).run(trials)
    finally:
        # A search that was refused leaves nothing.
        with contextlib.suppress(OSError):
            if [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()
    return read_search(folder)


def resume(
    out: str | Path,
    dataset: FaceDataset,
    *,
    trials: int | None = None,
    max_hours: float | None = None,
    max_epochs: int | None = None,
    retry_failed: bool = False,
    machine: Machine | None = None,
    callbacks: Sequence[Callback] = (),
    command: Sequence[str] = (),
) -> Search:
    """Continue a search: interrupted trials continue from their last epoch, finished ones are kept.

    Args and errors are those of :func:`search`, but for a larger number of ``trials`` and other limits (None:
    as before), and ``retry_failed``, which trains failed trials again. The faces must be the same as before.

    Raises:
        SearchError: If the folder holds no search, or one on other data.
    """
    folder, machine = Path(out).absolute(), machine or Machine()
    _refuse_other_data(read_search(folder), dataset)
    with locked(folder), output_errors(folder / JOURNAL):
        found = read_search(folder)
        if trials is not None and trials < len(found.trials):
            raise SearchError(f"{folder} has {len(found.trials)} trials already. Received: --trials {trials}")
        given = {"trials": trials, "max_hours": max_hours, "max_epochs": max_epochs}
        changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        found.settings = replace(found.settings, **changed)
        for trial in [t for t in found.trials.values() if retry_failed and t.state == "failed"]:
            found.add(replace(trial, state="waiting", reason="", result=None, reported=0))
        missing = len(found.trials) < found.settings.trials and found.within_budget
        if missing or any(trial.state == "waiting" for trial in found.trials.values()):
            with _placement(folder, machine, dataset, callbacks) as profiler:
                known = [trial.values for trial in found.trials.values()]
                cost_filter = CostFilter(found.space, found.settings, profiler, known)
                more = _sample_random(cost_filter, len(known))
                # Not before: a number of trials that the space does not have must not stay.
                found.save_settings()
                new_worker = _worker_factory(dataset, machine, command)
                _Driver(found, cost_filter, machine, callbacks, new_worker).run(more)
        else:
            found.save_settings()
    return read_search(folder)


def sample(space: Space, dataset: FaceDataset, settings: Settings) -> list[Trial]:
    """Return the trials of a random search without training anything.

    Raises:
        SearchError: As :func:`search`.
    """
    _check_data(space, dataset)
    with ray_running(Machine(), dataset, Callback().log):
        cost_filter = CostFilter(space, replace(settings, method="random"), _profiler(dataset))
        _check_networks(cost_filter)
        return _sample_random(cost_filter)


def _sample_random(cost_filter: CostFilter, first: int = 0) -> list[Trial]:
    """Return the missing trials of a random search; TPE needs results first."""
    if cost_filter.settings.method != "random":
        return []
    return [propose(number, cost_filter) for number in range(first, cost_filter.settings.trials)]


@contextlib.contextmanager
def _placement(
    folder: Path, machine: Machine, dataset: FaceDataset, callbacks: Sequence[Callback]
) -> Iterator[Profiler]:
    """Run Ray where the trials run, after a check of the nodes; yield the model profiler."""

    def log(message: str) -> None:
        for callback in callbacks:
            callback.log(message)

    with ray_running(machine, dataset, log):
        if machine.address:
            check_nodes(folder / LOCK)
        if not machine.gpus and (unused := count_gpus()):
            log(f"{unused:g} GPUs found, and trials do not use them; --gpus 1 gives each trial one")
        yield _profiler(dataset)


def _data_facts(dataset: FaceDataset) -> dict[str, Any]:
    return {
        "source": Path(dataset.source).name,
        "fingerprint": dataset.fingerprint,
        "faces": len(dataset),
        "votes": dataset.votes is not None,
    }


def _refuse_other_data(found: Search, dataset: FaceDataset) -> None:
    """Refuse other faces or other votes than a search was started with."""
    before, now = found.facts["data"], _data_facts(dataset)
    if before["fingerprint"] != now["fingerprint"]:
        first, second = (
            f"{data['source']} ({data['faces']} faces, with{'' if data['votes'] else 'out'} votes)"
            for data in (before, now)
        )
        raise SearchError(
            f"{found.folder} was started with other data; use the same --data and --votes: {first}. "
            f"Received: {second}"
        )


def _check_data(space: Space, dataset: FaceDataset) -> None:
    """Refuse a space whose recipes need a teacher, or splits, labels, votes or sizes that the data lacks."""
    for parameter in space.parameters:
        if parameter.key in ("data.train_split", "data.validation_split"):
            raise SearchError(
                f"{space.source}: parameter {parameter.name!r} varies {parameter.key}, but accuracies on "
                "different splits cannot be ranked; fix it"
            )
    splits = set()
    for _, values in space.probes():
        recipe = space.recipe(values, space.name)
        if recipe.distil.weight:
            raise SearchError(
                f"{space.source}: trials have no teacher, so distil.weight must be 0. Received: "
                f"{recipe.distil.weight:g}. Distil the winner with: ferkit distil"
            )
        sizes = recipe.progressive.sizes
        if sizes and (max(sizes) >= dataset.size or recipe.model.params.get("view_size")):
            raise SearchError(
                f"{space.source}: progressive.sizes {list(sizes)} must lie below the faces' {dataset.size} "
                "pixels, and exclude a view_size"
            )
        heads_of(recipe, dataset.taxonomy, dataset.votes is not None)
        check_training_labels(dataset, recipe.data.train_split)
        splits |= {recipe.data.train_split, recipe.data.validation_split}
    for split in sorted(splits):
        dataset.of_split(split)


def _check_networks(cost_filter: CostFilter) -> None:
    """Build networks with every choice and both ends of every range, one after the other.

    Raises:
        SearchError: If one of them cannot be built; a network that only exceeds the memory is no reason.
    """
    space = cost_filter.space
    for parameter, values in space.probes():
        if parameter.key.split(".")[0] not in ("model", "heads", "progressive"):
            continue  # It does not change the network, and its recipes were checked when the space was read.
        try:
            cost_filter.profiler(space.recipe(values, space.name))
        except NetworkTooLargeError:
            continue
        except ModelError as error:
            raise SearchError(
                f"{space.source}: no network can be built for {format_values(values)} (tried for "
                f"{parameter.name!r}): {error}"
            ) from error


def _profiler(dataset: FaceDataset) -> Profiler:
    """Return a function that counts networks in a process of its own, the same network once."""
    import ray

    count = ray.remote(count_network).options(num_cpus=0, max_retries=3)
    counted: dict[str, tuple[int, float] | str] = {}

    def profile(recipe: Recipe) -> Cost:
        heads = heads_of(recipe, dataset.taxonomy, dataset.votes is not None)
        classes = {head.taxonomy.id: len(head.taxonomy) for head in heads}
        values = recipe.model_dump(mode="json")
        key = json.dumps([values["model"], values["progressive"]["sizes"], classes], sort_keys=True)
        if key not in counted:
            try:
                counted[key] = ray.get(count.remote(values, classes, dataset.size))
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                counted[key] = f"{OUT_OF_MEMORY}building the network ended the process"
        found = counted[key]
        if isinstance(found, str):
            raise (NetworkTooLargeError if found.startswith(OUT_OF_MEMORY) else ModelError)(found)
        return Cost(*found)

    return profile


def _worker_factory(dataset: FaceDataset, machine: Machine, command: Sequence[str]) -> Callable[[], Any]:
    """Return a function that starts a worker; the faces are stored in Ray once."""
    import ray

    faces = ray.put(replace(dataset, images=np.asarray(dataset.images)))
    actor = ray.remote(TrialWorker).options(num_cpus=machine.cores, num_gpus=machine.gpus)
    return lambda: actor.remote(faces, machine.cores, machine.gpus, list(command))


class _Driver:
    """Places trials on Ray's workers, asks the pruner after every epoch, and records every result.

    It alone writes the journal; workers return values.
    """

    def __init__(
        self,
        search: Search,
        cost_filter: CostFilter,
        machine: Machine,
        callbacks: Sequence[Callback],
        new_worker: Callable[[], Any],
    ) -> None:
        self.search, self.cost_filter, self.machine = search, cost_filter, machine
        self.callbacks, self.new_worker = callbacks, new_worker
        # Interrupted and lost trials, which go first.
        self.queue = deque(t for t in search.trials.values() if t.handle is not None)
        self.losses: dict[int, int] = {}
        self.running: dict[Any, tuple[Any, Trial]] = {}  # worker and trial by their pending message
        self.idle: list[Any] = []

    def run(self, trials: Sequence[Trial]) -> None:
        """Add the trials to the study, and train until there is nothing left.

        Raises:
            SearchError: If Ray is lost.
            OutputError: If the journal or a run cannot be written.
            KeyboardInterrupt: After Ctrl-C or SIGTERM.
        """
        import ray

        try:
            with stopping() as interrupts, output_errors(self.search.folder / JOURNAL):
                for trial in trials:
                    self.search.add(trial)
                self._call("on_search_begin", self.search, count_slots(self.machine))
                self._place()
                while self.running:
                    for ref in ray.wait(list(self.running), timeout=0.5)[0]:
                        self._receive(ref)
                    if interrupts.stop.is_set():
                        raise KeyboardInterrupt
                    self._place()
        except ConnectionError as error:
            raise SearchError(f"Ray was lost: {first_line(error)}. --resume continues the search") from error
        finally:
            for worker in [*self.idle, *(worker for worker, _ in self.running.values())]:
                with contextlib.suppress(ConnectionError, ray.exceptions.RayError):
                    ray.kill(worker)
            for _, trial in self.running.values():
                # A full disk is reported by the error that ended the search.
                with contextlib.suppress(OutputError):
                    mark_run(self.search.trial_folder(trial.number), "interrupted")

    def _call(self, event: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(*arguments)

    def _place(self) -> None:
        """Start trials in all free slots; end the workers for which there are none."""
        import ray

        # The slots are counted anew, since the nodes of a cluster come and go.
        while len(self.running) < count_slots(self.machine) and (trial := self._next_trial()):
            worker = self.idle.pop() if self.idle else self.new_worker()
            name = f"{self.search.space.name}-{trial.number:04d}"
            recipe = self.search.space.recipe(trial.values, name, format_values(trial.values))
            trial.state, trial.began, trial.pid = "running", time.time(), 0
            folder = self.search.trial_folder(trial.number)
            self.running[worker.start.remote(recipe.model_dump(mode="json"), folder)] = worker, trial
        # An idle worker would keep its cores from one that waits for a node.
        while self.idle:
            ray.kill(self.idle.pop())

    def _next_trial(self) -> Trial | None:
        """Return the next trial to place, or None if there is none."""
        search = self.search
        if self.queue:  # Trials that were begun are ended, whatever the budget.
            return self.queue.popleft()
        if not search.within_budget:
            return None
        if not any(trial.state == "waiting" for trial in search.trials.values()):
            if search.gave_up or len(search.trials) >= search.settings.trials:
                return None
            try:
                search.add(propose(len(search.trials), self.cost_filter, search.study))
            except SearchError as error:
                search.give_up(str(error))
                return None
        handle = search.study.ask()  # Takes a trial that waits.
        trial = search.trials[handle.user_attrs["trial"]]
        trial.handle = handle
        return trial

    def _receive(self, ref: Any) -> None:
        """Take the message of a worker, or its loss."""
        import ray

        worker, trial = self.running[ref]
        try:
            message: Message = ray.get(ref)
        except ray.exceptions.RayError as error:
            del self.running[ref]
            ray.kill(worker)
            self._lose(trial, _explain(error))
            return
        stop = self._process(trial, message)
        del self.running[ref]
        if message.kind in ("begin", "epoch"):
            self.running[worker.proceed.remote(stop)] = worker, trial
        else:
            self._mark(trial)
            self.idle.append(worker)

    def _process(self, trial: Trial, message: Message) -> bool:
        """Record a message; return whether the pruner stops the trial."""
        if message.kind == "unwritable":
            raise OutputError(
                f"trial {trial.number} cannot continue: {message.reason}. Once that is solved, --resume "
                "continues the search"
            )
        if message.kind == "begin":
            trial.pid, trial.attempts, trial.history = message.pid, trial.attempts + 1, []
            trial.handle.set_user_attr("attempts", trial.attempts)
            for row in message.rows:
                self._record(trial, row)
            self._call("on_trial_begin", trial)
        elif message.kind in ("epoch", "finished"):
            reported = trial.reported
            self._record(trial, message.rows[-1])
            if trial.reported > reported:  # Early stopping reports its last epoch twice.
                self._call("on_epoch_end", trial)
            if message.kind == "finished":
                self._end(trial, "finished")
            elif trial.handle.should_prune():
                self._end(trial, "stopped", f"ASHA, after epoch {len(trial.history)}")
                return True
        elif message.kind == "failed":
            self._end(trial, "failed", message.reason)
        return False

    def _record(self, trial: Trial, row: Row) -> None:
        """Add an epoch to the trial's history, and to the study if it is new there."""
        epoch = int(row["epoch"])
        trial.history = [*(r for r in trial.history if r["epoch"] < epoch), row]
        if epoch > trial.reported:
            trial.handle.report(row["val_accuracy"], epoch)
            trial.reported = epoch

    def _end(self, trial: Trial, state: State, reason: str = "") -> None:
        """Record how a trial ended."""
        if reason:
            trial.handle.set_user_attr("reason", reason)
        trial.result = trial.accuracy
        ends = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
        value = trial.result if state == "finished" else None
        self.search.study.tell(trial.handle, value, state=ends[state])
        trial.state, trial.reason = state, reason
        self._call("on_trial_end", trial)

    def _mark(self, trial: Trial) -> None:
        """Record in the run folder how a trial ended that the trainer did not see end."""
        if trial.state != "finished":
            mark_run(self.search.trial_folder(trial.number), trial.state, trial.reason)

    def _lose(self, trial: Trial, reason: str) -> None:
        """Record the loss of a worker, and place its trial again or fail it."""
        losses = self.losses[trial.number] = self.losses.get(trial.number, 0) + 1
        if trial.state == "running" and losses <= self.search.settings.retries:
            trial.lost.append(reason)
            trial.handle.set_user_attr("lost", trial.lost)
            self.queue.appendleft(trial)
            self._call("on_trial_retry", trial)
            return
        if trial.state == "running":
            self._end(trial, "failed", f"after {losses - 1} retries: {reason}")
        self._mark(trial)


def _explain(error: Exception) -> str:
    """Return one line on why a worker was lost."""
    import ray

    text = str(error)
    if any(words in text for words in ("OutOfMemory", "memory pressure", "running low on memory")):
        return "out of memory: Ray ended the worker because the machine was almost full"
    if isinstance(error, ray.exceptions.RayTaskError) or "creation task" in text:
        return text.strip().splitlines()[-1][:300]
    return "the worker died (killed, out of memory, or its machine was lost)"
