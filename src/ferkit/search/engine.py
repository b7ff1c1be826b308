"""The search itself: Ray Tune trains what is proposed, and the folder keeps what came of it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from ferkit import __version__
from ferkit.data import FaceDataset
from ferkit.errors import FerkitError, ModelError, OutputError, SearchError
from ferkit.extras import require
from ferkit.search.propose import Cost, Gate, GuidedProposer, Proposal, Proposer, RandomProposer
from ferkit.search.records import (
    JOURNAL,
    Journal,
    Refusal,
    Search,
    Settings,
    Trial,
    create_search,
    locked,
    mark_run,
    read_search,
    trial_folder,
    write_settings,
)
from ferkit.search.space import Space, spell
from ferkit.search.worker import Surveyor, look_around, run_trial
from ferkit.training.recipe import Recipe
from ferkit.training.targets import heads_of

_RAY = ".ray"
_LOCKS = ".locks"

# Nothing is sent anywhere, nothing is written that we do not read, and Tune leaves signals to us.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "RAY_AIR_NEW_OUTPUT": "0",
}
_WORKER_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """Where trials run; it may change when a search goes on.

    Args:
        cores: Cores for each trial.
        gpus: GPUs for each trial; a fraction shares one.
        parallel: Trials at a time; None: as many as the cores and GPUs allow.
        address: A Ray cluster's address (``auto`` on one of its nodes); None: this machine alone.
    """

    cores: int = 1
    gpus: float = 0.0
    parallel: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no machine has."""
        if self.cores < 1 or self.gpus < 0 or (self.parallel is not None and self.parallel < 1):
            raise SearchError(
                "a trial needs at least one core and 0 GPUs, and at least one trial runs at a time. "
                f"Received: {self.cores} cores, {self.gpus:g} GPUs, {self.parallel} in parallel"
            )
        if self.address and self.address.startswith("ray://"):
            raise SearchError(
                "run the search on a node of the cluster, with --address auto. "
                f"Received: {self.address}, which is Ray's client protocol"
            )


class Watcher(Protocol):
    """Hears of a search while it works. ``search.trials`` holds the same trials, up to date."""

    def began(self, search: Search, slots: int) -> None:
        """Hear what is searched, and how many trials run at a time."""

    def changed(self, trial: Trial, what: str) -> None:
        """Hear that a trial ``started``, did an ``epoch``, was ``retried``, or its state at the end."""


class Silent:
    """A watcher that says nothing."""

    def began(self, search: Search, slots: int) -> None:
        """Say nothing."""

    def changed(self, trial: Trial, what: str) -> None:
        """Say nothing."""


def search(
    space: Space,
    dataset: FaceDataset,
    out: str | Path,
    settings: Settings,
    *,
    machine: Machine | None = None,
    watcher: Watcher | None = None,
    command: Sequence[str] = (),
) -> Search:
    """Search a space.

    Before anything is trained, networks with every choice and both ends of every range are built; in random
    search, those of all trials.

    Args:
        space: What to search.
        dataset: Faces with the recipe's splits. Ray's object store hands them to the trials of every node.
        out: The search's folder; it must not hold a search. On a cluster every node sees it by this path.
        settings: How to search.
        machine: Where; None: this machine, one core a trial.
        watcher: Hears of the progress.
        command: The command line, for the record.

    Returns:
        The folder as it was left.

    Raises:
        SearchError: If the space, the data or the machine do not fit together, or nothing can be drawn.
        OutputError: If the folder cannot be written; what is done stays.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, after what was running is recorded as interrupted.
    """
    _require_libraries()
    folder, machine = Path(out).absolute(), machine or Machine()
    facts = {
        "space": space.name,
        "command": list(command),
        "data": {
            "source": Path(dataset.source).name,
            "fingerprint": dataset.fingerprint,
            "faces": len(dataset),
        },
        "versions": _versions(),
        "machine": {"processor": platform.machine(), "cores": _cores(), "python": platform.python_version()},
    }
    _check_data(space, dataset)
    with locked(folder / ".lock", 0.0, "search"):
        try:
            with ray_running(machine, dataset), _counting(space, dataset) as gate:
                gate.settings = settings
                proposals, refused = _survey(space, gate)
                create_search(folder, space, settings, facts)
                with contextlib.closing(Journal(folder / JOURNAL)) as journal:
                    for refusal in refused:
                        _log_refusal(journal, refusal)
                    for proposal in proposals:
                        _log_proposal(journal, proposal)
                _conduct(folder, dataset, machine, watcher or Silent(), command, gate)
        except BaseException:
            _remove_if_empty(folder)
            raise
    return read_search(folder)


def resume(
    out: str | Path,
    dataset: FaceDataset,
    *,
    trials: int | None = None,
    retry_failed: bool = False,
    machine: Machine | None = None,
    watcher: Watcher | None = None,
    command: Sequence[str] = (),
) -> Search:
    """Go on with a search: trials that were interrupted go on from their last epoch, finished ones stay.

    Args:
        out: The search's folder.
        dataset: The same faces.
        trials: More trials than it began with, or None.
        retry_failed: Whether failed trials are started again.
        machine: As in :func:`search`.
        watcher: As in :func:`search`.
        command: As in :func:`search`.

    Raises:
        SearchError: If the folder holds no search, or one over other data.
        OutputError: As in :func:`search`.
        KeyboardInterrupt: As in :func:`search`.
    """
    _require_libraries()
    folder, machine = Path(out).absolute(), machine or Machine()
    found = read_search(folder)
    if found.facts["data"]["fingerprint"] != dataset.fingerprint:
        raise SearchError(f"{folder} searched on other data: the fingerprints differ")
    if trials is not None and trials < len(found.trials):
        raise SearchError(f"{folder} has {len(found.trials)} trials already. Received: --trials {trials}")
    with locked(folder / ".lock", 0.0, "search"):
        if trials is not None and trials != found.settings.trials:
            write_settings(folder, replace(found.settings, trials=trials), found.facts)
        if retry_failed:
            with contextlib.closing(Journal(folder / JOURNAL)) as journal:
                for trial in found.trials.values():
                    if trial.state == "failed":
                        journal.write("again", trial=trial.number)
        found = read_search(folder)
        if any(t.state == "waiting" for t in found.trials.values()) or _more_allowed(found):
            with ray_running(machine, dataset), _counting(found.space, dataset) as gate:
                gate.settings = found.settings
                _conduct(folder, dataset, machine, watcher or Silent(), command, gate)
    return read_search(folder)


def draw(space: Space, dataset: FaceDataset, settings: Settings) -> tuple[list[Proposal], list[Refusal]]:
    """Return what a random search would train, and what it would refuse, without training anything.

    Raises:
        SearchError: As :func:`search`.
    """
    _check_data(space, dataset)
    _require_libraries()
    with ray_running(Machine(), None), _counting(space, dataset) as gate:
        gate.settings = replace(settings, method="random")
        return _survey(space, gate)


@contextlib.contextmanager
def ray_running(machine: Machine, dataset: FaceDataset | None) -> Iterator[None]:
    """Connect to Ray or start it on this machine, and stop it afterwards; a running one is used as it is.

    Raises:
        SearchError: If there is no cluster at the address, or it has not what a trial needs.
    """
    with _environment({**_ENVIRONMENT, **_WORKER_ENVIRONMENT}):
        import ray

        if ray.is_initialized():
            _check_resources(machine)
            yield
            return
        temporary = None
        common: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        try:
            if machine.address:
                try:
                    ray.init(
                        address=machine.address, runtime_env={"env_vars": dict(_WORKER_ENVIRONMENT)}, **common
                    )
                except (ConnectionError, ValueError, RuntimeError) as error:
                    raise SearchError(f"no Ray cluster answers at {machine.address!r}: {error}") from error
            else:
                # Of its own and short: sockets lie in it, whose paths have little room.
                temporary = tempfile.mkdtemp(prefix="ferkit-")
                images = 0 if dataset is None else dataset.images.nbytes
                ray.init(
                    num_cpus=max(_cores(), machine.cores * (machine.parallel or 1)),
                    include_dashboard=False,
                    object_store_memory=max(128 << 20, 2 * images),
                    _node_ip_address="127.0.0.1",
                    _temp_dir=temporary,
                    **common,
                )
            _check_resources(machine)
            yield
        finally:
            ray.shutdown()
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)


def _check_resources(machine: Machine) -> None:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(n.get("CPU", 0) >= machine.cores and n.get("GPU", 0) >= machine.gpus for n in nodes):
        have = "; ".join(f"{n.get('CPU', 0):g} cores and {n.get('GPU', 0):g} GPUs" for n in nodes)
        raise SearchError(
            f"a trial needs {machine.cores} cores and {machine.gpus:g} GPUs on one machine; there are: {have}"
        )


def _require_libraries() -> None:
    """Refuse to start where a library is missing; only the workers load Keras, and only they pay for it."""
    for module, extra in (("keras", "train"), ("ray", "tune"), ("optuna", "tune"), ("pandas", "tune")):
        if importlib.util.find_spec(module) is None:
            require(module, extra)


def _slots(machine: Machine) -> int:
    """Return how many trials fit at a time."""
    import ray

    slots = 0
    for node in ray.nodes():
        if node["Alive"]:
            have = node["Resources"]
            fit = int(have.get("CPU", 0) // machine.cores)
            if machine.gpus:
                fit = min(fit, int(have.get("GPU", 0) / machine.gpus + 1e-9))
            slots += fit
    return max(1, slots if machine.parallel is None else min(machine.parallel, slots))


def _check_data(space: Space, dataset: FaceDataset) -> None:
    """Refuse a space whose recipes ask for splits or votes that the data does not have."""
    splits = set()
    for _, values in space.probes():
        recipe = space.recipe(values, space.name)
        heads_of(recipe, dataset.taxonomy, dataset.votes is not None)
        splits |= {recipe.data.train_split, recipe.data.validation_split}
    for split in sorted(splits):
        dataset.of_split(split)


@contextlib.contextmanager
def _counting(space: Space, dataset: FaceDataset) -> Iterator[Gate]:
    """Yield a gate that counts networks in a process of its own."""
    import ray

    actor = ray.remote(Surveyor).options(num_cpus=0, max_restarts=3, max_task_retries=3).remote()
    known: dict[str, Cost | str] = {}

    def measure(recipe: Recipe) -> Cost:
        heads = {
            head.taxonomy.id: len(head.taxonomy)
            for head in heads_of(recipe, dataset.taxonomy, dataset.votes is not None)
        }
        content = recipe.model_dump(mode="json")
        key = json.dumps([content["model"], heads], sort_keys=True)
        if key not in known:
            try:
                answer = ray.get(actor.count.remote(content, heads, dataset.size))
            except ray.exceptions.RayActorError:
                answer = "building it ended the process; it may need more memory than there is"
            known[key] = answer if isinstance(answer, str) else Cost(*answer)
        found = known[key]
        if isinstance(found, str):
            raise ModelError(found)
        return found

    try:
        yield Gate(space, Settings(1), measure)
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(actor)


def _survey(space: Space, gate: Gate) -> tuple[list[Proposal], list[Refusal]]:
    """Build what the space can ask for; in random search, return everything that will be trained."""
    for parameter, values in space.probes():
        try:
            gate.measure(space.recipe(values, space.name))
        except ModelError as error:
            raise SearchError(
                f"{space.source}: no network can be built for {spell(values)} (tried for "
                f"{parameter.name!r}): {error}"
            ) from error
    if gate.settings.method != "random":
        return [], []
    proposer = RandomProposer(gate)
    proposals = [proposer.propose(number) for number in range(1, gate.settings.trials + 1)]
    return proposals, proposer.refused


def _log_refusal(journal: Journal, refusal: Refusal) -> None:
    facts = asdict(refusal)
    journal.write("refused", trial=facts.pop("number"), **facts)


def _log_proposal(journal: Journal, proposal: Proposal) -> None:
    journal.write("drawn", trial=proposal.number, values=proposal.values, **asdict(proposal.cost))


def _more_allowed(search: Search) -> bool:
    """Whether further trials are wanted, by number and by training time."""
    hours = sum(trial.seconds for trial in search.trials.values()) / 3600
    limit = search.settings.max_hours
    return len(search.trials) < search.settings.trials and (limit is None or hours < limit)


class _Halted(BaseException):
    """Leaves Tune's loop at once; its loop takes an Exception for a trial's failure."""


class _Conductor:
    """Everything that a search holds while Tune works for it."""

    def __init__(self, search: Search, journal: Journal, proposer: Proposer, watcher: Watcher) -> None:
        self.search, self.journal, self.proposer, self.watcher = search, journal, proposer, watcher
        self.queue = [t.number for t in search.trials.values() if t.state == "waiting"]
        self.wrong: BaseException | None = None

    def wanted(self) -> int:
        """Return how many trials are to be started at most."""
        return len(self.queue) + max(self.search.settings.trials - len(self.search.trials), 0)

    def next(self) -> Trial | None:
        """Return the next trial to start, or None at the end."""
        if self.wrong is not None:
            return None
        hours = sum(trial.seconds for trial in self.search.trials.values()) / 3600
        if self.search.settings.max_hours is not None and hours >= self.search.settings.max_hours:
            return None
        if self.queue:
            return self.search.trials[self.queue.pop(0)]
        if not _more_allowed(self.search):
            return None
        number = max(self.search.trials, default=0) + 1
        try:
            proposal = self.proposer.propose(number)
        finally:
            for refusal in self.proposer.refused:
                _log_refusal(self.journal, refusal)
            self.search.refused.extend(self.proposer.refused)
            self.proposer.refused.clear()
        _log_proposal(self.journal, proposal)
        cost = proposal.cost
        trial = Trial(number, proposal.values, cost.parameters, cost.mmac)
        self.search.trials[number] = trial
        return trial

    def started(self, trial: Trial) -> None:
        trial.state, trial.began = "running", time.time()
        trial.host, trial.pid = "", 0

    def heard(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """Take a report of the worker."""
        phase = result["phase"]
        if phase == "started":
            trial.host, trial.pid = result.get("hostname", ""), result.get("pid", 0)
            self.journal.write("started", trial=trial.number, host=trial.host, pid=trial.pid)
            trial.history = []
            self.watcher.changed(trial, "started")
        elif phase == "failed":
            if result["halt"]:
                raise OutputError(
                    f"trial {trial.number} cannot go on: {result['reason']}. Once that is mended, --resume "
                    "goes on with the search"
                )
            self.ended(trial, "failed", result["reason"])
        else:
            row = result["row"]
            trial.history = [r for r in trial.history if r["epoch"] < row["epoch"]] + [row]
            if phase == "finished":
                self.ended(trial, "finished")
            else:
                self.proposer.epoch_done(trial.number, int(row["epoch"]), row["val_accuracy"])
                self.watcher.changed(trial, "epoch")

    def ended(self, trial: Trial, state: Any, reason: str = "") -> None:
        """Record the end of a trial; only the first counts."""
        if trial.state != "running":
            return
        busy = round(trial.busy + time.time() - trial.began, 3)
        self.journal.write(state, trial=trial.number, reason=reason, busy=busy)
        trial.state, trial.reason, trial.busy, trial.ended = state, reason, busy, time.time()
        self.proposer.ended(trial)
        if state != "finished":
            mark_run(self.search.trial_folder(trial.number), state, reason)
        self.watcher.changed(trial, state)

    def lost(self, trial: Trial, reason: str) -> None:
        """Record that a worker was lost and the trial is tried again."""
        trial.retries += 1
        trial.busy += time.time() - trial.began
        self.journal.write("retried", trial=trial.number, reason=reason)
        self.watcher.changed(trial, "retried")


def _conduct(
    folder: Path,
    dataset: FaceDataset,
    machine: Machine,
    watcher: Watcher,
    command: Sequence[str],
    gate: Gate,
) -> None:
    """Let Tune work through the trials that are left."""
    import ray

    found = read_search(folder)
    if machine.address:
        _check_nodes(folder)
    gate.remember(trial.values for trial in found.trials.values())
    proposer: Proposer = (
        GuidedProposer(gate, list(found.trials.values()))
        if found.settings.method == "tpe"
        else RandomProposer(gate)
    )
    slots = _slots(machine)
    with contextlib.closing(Journal(folder / JOURNAL)) as journal:
        journal.write("session", command=list(command), slots=slots, version=__version__)
        conductor = _Conductor(found, journal, proposer, watcher)
        watcher.began(found, slots)
        try:
            with _signals(conductor):
                _tune(conductor, dataset, machine, command, slots)
        except _Halted:
            # Workers first, so that none of them writes into a run that is being marked.
            ray.shutdown()
        finally:
            for trial in found.trials.values():
                if trial.state == "running":
                    mark_run(found.trial_folder(trial.number), "interrupted")
            for name in (_RAY, _LOCKS):
                shutil.rmtree(folder / name, ignore_errors=True)
    if conductor.wrong is not None:
        raise conductor.wrong


def _tune(
    conductor: _Conductor, dataset: FaceDataset, machine: Machine, command: Sequence[str], slots: int
) -> None:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    found, settings = conductor.search, conductor.search.settings
    scheduler: Any = FIFOScheduler()
    if settings.asha:
        epochs = found.space.most_epochs()
        scheduler = ASHAScheduler(
            time_attr="epoch",
            metric="val_accuracy",
            mode="max",
            max_t=epochs,
            grace_period=min(settings.grace, epochs),
            reduction_factor=settings.reduction,
        )
        _replay(scheduler, found)
    faces = replace(dataset, images=np.asarray(dataset.images))
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, dataset=faces, cores=machine.cores, command=list(command)),
        {"cpu": machine.cores, "gpu": machine.gpus},
    )
    tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=conductor.wanted(),
            search_alg=_feed(conductor),
            scheduler=scheduler,
            # So that each suggestion knows all results there are; Tune would ask for one in advance.
            max_concurrent_trials=slots,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(found.folder / _RAY),
            failure_config=tune.FailureConfig(max_failures=settings.retries),
            callbacks=[_ears(conductor)],
            verbose=0,
        ),
    ).fit()


def _replay(scheduler: Any, found: Search) -> None:
    """Tell a new ASHA scheduler how the earlier trials went, so that it judges by the same rungs."""
    for trial in found.trials.values():
        if trial.state in ("finished", "stopped"):
            stand_in = SimpleNamespace(trial_id=f"earlier-{trial.number}")
            scheduler.on_trial_add(None, stand_in)
            for row in trial.history:
                scheduler.on_trial_result(
                    None, stand_in, {"epoch": int(row["epoch"]), "val_accuracy": row["val_accuracy"]}
                )


def _feed(conductor: _Conductor) -> Any:
    """Return the conductor's trials as a search algorithm of Tune's."""
    from ray.tune.search import Searcher

    folder, space = conductor.search.folder, conductor.search.space

    class Feed(Searcher):  # type: ignore[misc]
        def suggest(self, trial_id: str) -> Any:  # noqa: ARG002
            try:
                trial = conductor.next()
            except FerkitError as error:
                conductor.wrong = error
                trial = None
            if trial is None:
                return Searcher.FINISHED
            recipe = space.recipe(
                trial.values, conductor.search.trial_name(trial.number), spell(trial.values)
            )
            trial.epochs = recipe.epochs
            return {
                "number": trial.number,
                "folder": str(trial_folder(folder, trial.number)),
                "lock": str(folder / _LOCKS / f"{trial.number:04d}"),
                "recipe": recipe.model_dump(mode="json"),
            }

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            """Leave it to the callback, which knows more."""

        def save(self, checkpoint_path: str) -> None:
            """Save nothing: the journal does."""

        def restore(self, checkpoint_path: str) -> None:
            """Restore nothing."""

    return Feed()


def _ears(conductor: _Conductor) -> Any:
    """Return a callback of Tune's that tells the conductor what happens.

    Tune takes what a callback raises for a trial's failure, so it is kept, and raised at the end of the step.
    """
    from ray.tune import Callback

    def trial_of(trial: Any) -> Trial:
        return conductor.search.trials[trial.config["number"]]

    @contextlib.contextmanager
    def kept() -> Iterator[None]:
        try:
            yield
        except FerkitError as error:
            conductor.wrong = conductor.wrong or error

    class Ears(Callback):  # type: ignore[misc]
        def on_trial_start(self, trial: Any, **_: Any) -> None:
            with kept():
                conductor.started(trial_of(trial))

        def on_trial_result(self, trial: Any, result: Any, **_: Any) -> None:
            with kept():
                conductor.heard(trial_of(trial), result)

        def on_trial_complete(self, trial: Any, **_: Any) -> None:
            one = trial_of(trial)
            with kept():
                conductor.ended(one, "stopped", f"ASHA, after epoch {len(one.history)}")

        def on_trial_recover(self, trial: Any, **_: Any) -> None:
            with kept():
                conductor.lost(trial_of(trial), _last_words(trial))

        def on_trial_error(self, trial: Any, **_: Any) -> None:
            one = trial_of(trial)
            with kept():
                conductor.ended(one, "failed", f"after {one.retries} retries: {_last_words(trial)}")

        def on_step_end(self, **_: Any) -> None:
            if conductor.wrong is not None:
                raise _Halted

    return Ears()


def _last_words(trial: Any) -> str:
    """Return one line on why Tune lost a trial."""
    path = trial.error_file
    text = Path(path).read_text("utf-8", errors="replace") if path and Path(path).exists() else ""
    last = text.rsplit("Failure #", 1)[-1]
    if "OutOfMemory" in last or "memory pressure" in last:
        return "out of memory: Ray ended the worker because the machine was almost full"
    if "ActorDiedError" in last or "actor died" in last or "ActorUnavailable" in last:
        return "the worker died (killed, or its machine was lost)"
    lines = [line.strip() for line in last.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "the worker was lost without a word"


@contextlib.contextmanager
def _signals(conductor: _Conductor) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the search at the end of Tune's step; a second Ctrl-C ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: Any) -> None:  # noqa: ARG001
        conductor.wrong = conductor.wrong or KeyboardInterrupt()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in earlier:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _check_nodes(folder: Path) -> None:
    """Refuse a cluster whose nodes cannot see the search's folder or run another version."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(look_around)
    file = str(folder / ".lock")
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        place = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        name = node["NodeManagerHostname"]
        try:
            version, visible = ray.get(look.options(num_cpus=0, scheduling_strategy=place).remote(file))
        except ray.exceptions.RayError as error:
            words = str(error).strip().splitlines()[-1:]
            raise SearchError(f"node {name} of the cluster cannot run ferkit: {' '.join(words)}") from error
        if version != __version__:
            raise SearchError(f"node {name} of the cluster has ferkit {version}, this one {__version__}")
        if not visible:
            raise SearchError(
                f"node {name} of the cluster does not see {folder}; --out must lie in a folder that all "
                "nodes share by the same path"
            )


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing but our lock; a search that was refused leaves nothing."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] == [".lock"]:
            (folder / ".lock").unlink()
            folder.rmdir()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"ferkit": __version__, **{name: version(name) for name in ("ray", "optuna", "keras", "numpy")}}
