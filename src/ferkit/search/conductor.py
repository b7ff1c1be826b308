"""The trials in Ray Tune's hands: what it is fed, what it tells, and what is written down of it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from ferkit.core.errors import FerkitError, OutputError, SearchError
from ferkit.data import FaceDataset
from ferkit.search.cluster import Machine, one_line
from ferkit.search.propose import Proposal, Proposer
from ferkit.search.records import Journal, Refusal, Search, Trial, mark_run, trial_folder
from ferkit.search.space import spell
from ferkit.search.worker import run_trial

RAY = ".ray"
LOCKS = ".locks"


class Watcher(Protocol):
    """Hears of a search while it works. ``search.trials`` holds the same trials, up to date."""

    def began(self, search: Search, slots: int) -> None:
        """Hear what is searched, and how many trials run at a time."""

    def changed(self, trial: Trial, what: str) -> None:
        """Hear that a trial ``started``, did an ``epoch``, was ``retried``, or its state at the end."""

    def remarked(self, text: str) -> None:
        """Hear a line that people should read, which is no error."""


class Silent:
    """A watcher that says nothing."""

    def began(self, search: Search, slots: int) -> None:
        """Say nothing."""

    def changed(self, trial: Trial, what: str) -> None:
        """Say nothing."""

    def remarked(self, text: str) -> None:
        """Say nothing."""


def log_refusal(journal: Journal, refusal: Refusal) -> None:
    """Write down what was drawn in vain."""
    facts = asdict(refusal)
    journal.write("refused", trial=facts.pop("number"), **facts)


def log_proposal(journal: Journal, proposal: Proposal) -> None:
    """Write down what will be trained."""
    journal.write("drawn", trial=proposal.number, values=proposal.values, **asdict(proposal.cost))


def within_budget(search: Search) -> bool:
    """Whether a trial may start, by what all have trained together."""
    most_hours, most_epochs = search.settings.max_hours, search.settings.max_epochs
    return (most_hours is None or search.hours < most_hours) and (
        most_epochs is None or search.epochs < most_epochs
    )


def more_allowed(search: Search) -> bool:
    """Whether further trials are wanted, by number and by what all have trained together."""
    return len(search.trials) < search.settings.trials and within_budget(search)


class Halted(BaseException):
    """Leaves Tune's loop at once; what Tune still runs goes with Ray, which is stopped next."""


class WoundDown(Exception):  # noqa: N818
    """Leaves Tune's loop where Ray goes on, so Tune ends what it runs before."""


class Conductor:
    """Everything that a search holds while Tune works for it."""

    def __init__(
        self, search: Search, journal: Journal, proposer: Proposer, watcher: Watcher, stops_ray: bool
    ) -> None:
        self.search, self.journal, self.proposer, self.watcher = search, journal, proposer, watcher
        self.stops_ray = stops_ray
        self.queue = [t.number for t in search.trials.values() if t.state == "waiting"]
        self.wrong: BaseException | None = None
        self.gave_up = ""

    def __reduce__(self) -> Any:
        """Stand aside where Tune pickles what it was given; a search goes on from its journal."""
        return object, ()

    def wanted(self) -> int:
        """Return how many trials are to be started at most."""
        return len(self.queue) + max(self.search.settings.trials - len(self.search.trials), 0)

    def next(self) -> Trial | None:
        """Return the next trial to start, or None at the end."""
        if self.wrong is not None:
            return None
        affordable = within_budget(self.search)
        for place, number in enumerate(self.queue):
            # What was begun is ended: its epochs are spent already.
            if affordable or self.search.trials[number].history:
                return self.search.trials[self.queue.pop(place)]
        if self.gave_up or not more_allowed(self.search):
            return None
        number = max(self.search.trials, default=0) + 1
        try:
            proposal = self.proposer.propose(number)
        except SearchError as error:
            # No reason to end those that run; asking again would find as little.
            self.gave_up = str(error)
            self.journal.write("gave_up", trial=number, reason=self.gave_up)
            return None
        finally:
            for refusal in self.proposer.refused:
                log_refusal(self.journal, refusal)
            self.search.refused.extend(self.proposer.refused)
            self.proposer.refused.clear()
        log_proposal(self.journal, proposal)
        cost = proposal.cost
        trial = Trial(number, proposal.values, cost.parameters, cost.mmac)
        self.search.trials[number] = trial
        return trial

    def started(self, trial: Trial) -> None:
        """Take note that a trial has got its place; it says so itself once it trains."""
        trial.state, trial.began = "running", time.time()
        trial.host, trial.pid = "", 0

    def heard(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """Take a report of the worker."""
        phase = result["phase"]
        if phase == "started":
            trial.host, trial.pid = result.get("hostname", ""), result.get("pid", 0)
            self.journal.write("started", trial=trial.number, host=trial.host, pid=trial.pid)
            trial.history = []
            trial.starts += 1
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
        self.journal.write(
            state,
            trial=trial.number,
            reason=reason,
            busy=busy,
            accuracy=trial.accuracy,
            epochs=len(trial.history),
        )
        trial.state, trial.reason, trial.busy, trial.ended = state, reason, busy, time.time()
        trial.result = trial.accuracy
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


def run_tune(
    conductor: Conductor, dataset: FaceDataset, machine: Machine, command: Sequence[str], slots: int
) -> None:
    """Let Ray Tune train what the conductor hands out, until there is nothing left or something is wrong."""
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler

    found, settings = conductor.search, conductor.search.settings
    scheduler: Any = FIFOScheduler()
    if settings.asha:
        scheduler = _judge(found)
    faces = replace(dataset, images=np.asarray(dataset.images))
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, dataset=faces, cores=machine.cores, command=list(command)),
        {"cpu": machine.cores, "gpu": machine.gpus},
    )
    try:
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
                storage_path=str(found.folder / RAY),
                failure_config=tune.FailureConfig(max_failures=settings.retries),
                callbacks=[_ears(conductor)],
                verbose=0,
            ),
        ).fit()
    except ConnectionError as error:
        raise SearchError(f"Ray was lost: {one_line(error)}. --resume goes on with the search") from error
    except OSError as error:
        raise OutputError(
            f"cannot write {found.folder / RAY}: {one_line(error)}. Once that is mended, --resume goes on "
            "with the search"
        ) from error


def _judge(found: Search) -> Any:
    """Return ASHA as a scheduler of Tune's that knows what all trials of the search have done so far.

    It knows trials by their numbers: Tune calls one that goes on by another id than in the session before,
    and it would be judged once more at rungs that it had passed, by now against more of the others.
    """
    from ray.tune.schedulers import ASHAScheduler

    def numbered(trial: Any) -> SimpleNamespace:
        return SimpleNamespace(trial_id=trial.config["number"])

    class Judge(ASHAScheduler):  # type: ignore[misc]
        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            super().on_trial_add(tune_controller, numbered(trial))

        def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> Any:
            return super().on_trial_result(tune_controller, numbered(trial), result)

        def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None:
            super().on_trial_complete(tune_controller, numbered(trial), result)

        def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
            super().on_trial_remove(tune_controller, numbered(trial))

    epochs = found.space.most_epochs()
    judge = Judge(
        time_attr="epoch",
        metric="val_accuracy",
        mode="max",
        max_t=epochs,
        grace_period=min(found.settings.grace, epochs),
        reduction_factor=found.settings.reduction,
    )
    for trial in found.trials.values():
        earlier = SimpleNamespace(config={"number": trial.number})
        judge.on_trial_add(None, earlier)
        for row in trial.history:
            judge.on_trial_result(
                None, earlier, {"epoch": int(row["epoch"]), "val_accuracy": row["val_accuracy"]}
            )
    return judge


def _feed(conductor: Conductor) -> Any:
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
                "lock": str(folder / LOCKS / f"{trial.number:04d}"),
                "recipe": recipe.model_dump(mode="json"),
            }

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            """Leave it to the callback, which knows more."""

        def save(self, checkpoint_path: str) -> None:
            """Save nothing: the journal does."""

        def restore(self, checkpoint_path: str) -> None:
            """Restore nothing."""

    return Feed()


def _ears(conductor: Conductor) -> Any:
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
                raise Halted if conductor.stops_ray else WoundDown

    return Ears()


def _last_words(trial: Any) -> str:
    """Return one line on why Tune lost a trial."""
    path = trial.error_file
    text = Path(path).read_text("utf-8", errors="replace") if path and Path(path).exists() else ""
    last = text.rsplit("Failure #", 1)[-1]
    if "OutOfMemory" in last or "memory pressure" in last:
        return "out of memory: Ray ended the worker because the machine was almost full"
    if any(words in last for words in ("ActorDiedError", "actor died", "ActorUnavailable", "is unavailable")):
        return "the worker died (killed, out of memory, or its machine was lost)"
    lines = [line.strip() for line in last.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "the worker was lost without a word"


@contextlib.contextmanager
def signals_kept(conductor: Conductor) -> Iterator[None]:
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
