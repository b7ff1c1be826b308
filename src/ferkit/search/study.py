"""The folder of a search: an Optuna study in a journal file, and the run folder of every trial."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from ferkit.core.errors import OutputError, SearchError
from ferkit.core.files import output_errors, replacing, write_json
from ferkit.core.locks import LOCK, folder_lock
from ferkit.search.space import Space, Values, parse_space
from ferkit.training.history import Row
from ferkit.training.recipe import dump_recipe, parse_recipe
from ferkit.training.runs import HISTORY, RUN, read_json

JOURNAL = "journal.log"
TRIALS = "trials"

State = Literal["waiting", "running", "finished", "stopped", "failed"]
ENDS = ("finished", "stopped", "failed")
"""States of trials that have ended."""

_STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "waiting",  # Interrupted: nothing runs while a folder is read.
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}

_PERSISTENT = ("parameters", "mmac", "epochs", "refused", "attempts", "lost")
"""What the study stores of a trial as user attributes, beside its number, folder and reason."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides a search beside its space and the data.

    Args:
        trials: Number of configurations to train.
        method: ``random`` or ``tpe`` (Bergstra et al. 2011).
        seed: Seed of the sampler.
        asha: Whether poor trials are stopped early (Li et al. 2020).
        grace: ASHA: epochs that every trial gets.
        reduction: ASHA: one in so many trials passes each rung.
        max_mmac: Refuse networks of more million multiply-accumulates per face; None: no limit.
        max_params: Refuse networks of more parameters; None: no limit.
        max_hours: Start no further trial after so many hours of training in total; None: no limit.
        max_epochs: Start no further trial after so many epochs in total; None: no limit.
        retries: How often a trial is restarted after its worker was lost.
    """

    trials: int
    method: Literal["random", "tpe"] = "random"
    seed: int = 0
    asha: bool = False
    grace: int = 1
    reduction: int = 3
    max_mmac: float | None = None
    max_params: int | None = None
    max_hours: float | None = None
    max_epochs: int | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name, least in (("trials", 1), ("grace", 1), ("reduction", 2), ("retries", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise SearchError(f"{name} must be {least} or more. Received: {getattr(self, name)}")
        if self.method not in ("random", "tpe"):
            raise SearchError(f"method is random or tpe. Received: {self.method!r}")
        for name in ("max_mmac", "max_params", "max_hours", "max_epochs"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise SearchError(f"{name} must lie above 0. Received: {limit}")


@dataclass(slots=True)
class Trial:
    """One configuration and its result."""

    number: int  # from 0, in the order of sampling; names the run folder
    values: Values
    parameters: int  # of the network
    mmac: float  # million multiply-accumulates per face
    epochs: int  # of its recipe
    distributions: dict[str, optuna.distributions.BaseDistribution]
    refused: list[dict[str, Any]]  # what was sampled before: values, parameters, mmac, reason
    state: State = "waiting"
    reason: str = ""  # why it failed or was stopped
    attempts: int = 0  # how often its training was started
    lost: list[str] = field(default_factory=list)  # why its workers were lost
    history: list[Row] = field(default_factory=list)  # one row per epoch done
    result: float | None = None  # validation accuracy when it ended, 0..1
    reported: int = 0  # the last epoch that the Optuna study knows
    began: float = 0.0  # when it was last placed, seconds since 1970
    ended: float = 0.0  # when it ended
    placed: float = 0.0  # seconds from its first placement to its end
    pid: int = 0  # of its worker
    handle: Any = None  # Optuna's trial, from its placement to its end

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy after the last epoch, 0..1."""
        if self.result is not None:
            return self.result
        return self.history[-1]["val_accuracy"] if self.history else None

    @property
    def seconds(self) -> float:
        """Seconds of training, without start-up and validation."""
        return sum(row["seconds"] for row in self.history)


@dataclass(slots=True)
class Search:
    """A search that was read from its folder."""

    folder: Path
    study: optuna.Study
    space: Space
    settings: Settings
    trials: dict[int, Trial]  # by number
    gave_up: str = ""  # why no further configuration was found

    @property
    def facts(self) -> dict[str, Any]:
        """What the study records of the search: data, versions, command, machine."""
        return self.study.user_attrs

    @property
    def refused(self) -> list[dict[str, Any]]:
        """Configurations that were sampled and not trained: values, parameters, mmac, reason."""
        return [refusal for trial in self.trials.values() for refusal in trial.refused]

    @property
    def epochs(self) -> int:
        """Epochs that all trials have done in total."""
        return sum(len(trial.history) for trial in self.trials.values())

    @property
    def hours(self) -> float:
        """Hours that all trials have trained in total."""
        return sum(trial.seconds for trial in self.trials.values()) / 3600

    @property
    def within_budget(self) -> bool:
        """Whether ``max_hours`` and ``max_epochs`` allow a further trial."""
        hours, epochs = self.settings.max_hours, self.settings.max_epochs
        return (hours is None or self.hours < hours) and (epochs is None or self.epochs < epochs)

    def trial_folder(self, number: int) -> Path:
        """Return the run folder of a trial."""
        return self.folder / TRIALS / f"{number:04d}"

    def finished(self) -> list[Trial]:
        """Return the trials that trained to the end, best first; of equals the cheaper network first."""
        done = [t for t in self.trials.values() if t.state == "finished"]
        return sorted(done, key=lambda t: (-(t.accuracy or 0.0), t.mmac, t.number))

    def add(self, trial: Trial) -> None:
        """Add a trial to the study, to wait for its placement."""
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.WAITING,
                params={p.name: p.stored(trial.values[p.name]) for p in self.space.active(trial.values)},
                distributions=trial.distributions,
                user_attrs={
                    "trial": trial.number,
                    "folder": f"{TRIALS}/{trial.number:04d}",
                    **{name: getattr(trial, name) for name in _PERSISTENT},
                },
            )
        )
        self.trials[trial.number] = trial

    def give_up(self, reason: str) -> None:
        """Record why no further configuration is sampled."""
        self.gave_up = reason
        self.study.set_user_attr("gave_up", reason)

    def save_settings(self) -> None:
        """Record changed settings, which may allow further configurations."""
        self.study.set_user_attr("settings", asdict(self.settings))
        self.give_up("")


def _storage(path: Path) -> optuna.storages.JournalStorage:
    return optuna.storages.JournalStorage(
        JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
    )


def refuse_occupied(folder: Path) -> None:
    """Raise SearchError if the folder holds a search."""
    if (folder / JOURNAL).exists():
        raise SearchError(f"{folder} holds a search already; continue it with --resume or name another --out")


def create_search(folder: Path, space: Space, settings: Settings, facts: Mapping[str, Any]) -> None:
    """Write a new search without trials into a folder, in one step; the study records ``facts`` as well.

    Raises:
        SearchError: If the folder holds a search already.
        OutputError: If it cannot be written.
    """
    refuse_occupied(folder)
    with replacing(folder / JOURNAL) as temporary:
        study = optuna.create_study(storage=_storage(temporary), study_name=space.name, direction="maximize")
        for name, value in {
            **facts,
            "space": space.text,
            "recipe": dump_recipe(space.base),
            "overrides": list(space.overrides),
            "settings": asdict(settings),
        }.items():
            study.set_user_attr(name, value)


def read_search(folder: str | Path) -> Search:
    """Read the folder of a search, finished or not.

    Raises:
        SearchError: If the folder holds no search, or a damaged one.
    """
    folder = Path(folder)
    path = folder / JOURNAL
    if not path.is_file():
        raise SearchError(f"{folder} holds no search: it has no {JOURNAL}")
    try:
        study = optuna.load_study(study_name=None, storage=_storage(path))
        facts = study.user_attrs
        settings = Settings(**facts["settings"])
        text, recipe, overrides = facts["space"], facts["recipe"], facts["overrides"]
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise SearchError(f"{path} is damaged, or of another version of ferkit: {error!r}") from error
    base = parse_recipe(tomllib.loads(recipe), str(path))
    space = parse_space(text, f"the space of {folder}", base=base, overrides=overrides)
    study.sampler = optuna.samplers.RandomSampler()  # Configurations are sampled by ferkit.search.sampling.
    study.pruner = optuna.pruners.NopPruner()
    if settings.asha:
        study.pruner = optuna.pruners.SuccessiveHalvingPruner(
            min_resource=settings.grace, reduction_factor=settings.reduction
        )
    search = Search(folder, study, space, settings, {}, facts.get("gave_up", ""))
    for frozen in study.get_trials(deepcopy=False):
        # A failed trial that is retried is a further trial of the study, with the number it had.
        trial = _read_trial(search, frozen)
        search.trials[trial.number] = trial
    return search


def _read_trial(search: Search, frozen: optuna.trial.FrozenTrial) -> Trial:
    facts = frozen.user_attrs
    trial = Trial(
        number=facts["trial"],
        values=search.space.values_of(frozen.params),
        distributions=frozen.distributions,
        state=_STATES[frozen.state],
        reason=facts.get("reason", ""),
        reported=frozen.last_step or 0,
        **{name: facts[name] for name in _PERSISTENT},
    )
    # A run that has ended may be trained further by other commands, which is not part of the search.
    last = trial.reported if frozen.state.is_finished() else trial.epochs
    trial.history = [r for r in _read_history(search.trial_folder(trial.number)) if r["epoch"] <= last]
    if frozen.state.is_finished():
        trial.result = frozen.intermediate_values.get(trial.reported)
    elif frozen.state is TrialState.RUNNING:
        # For a trial that exists, Optuna has no public way to its handle.
        trial.handle = optuna.Trial(search.study, frozen._trial_id)
    if frozen.datetime_start and frozen.datetime_complete:
        trial.ended = frozen.datetime_complete.timestamp()
        trial.placed = trial.ended - frozen.datetime_start.timestamp()
    return trial


def _read_history(folder: Path) -> list[Row]:
    return read_json(folder / HISTORY) if (folder / HISTORY).exists() else []


def mark_run(folder: Path, state: str, error: str = "") -> None:
    """Write into ``run.json`` how a run ended that could not write it itself.

    Raises:
        OutputError: If it cannot be written.
    """
    path = folder / RUN
    facts = read_json(path) if path.exists() else {}
    if facts.get("state") == "running":
        rows = _read_history(folder)
        facts.update(state=state, epochs=len(rows), seconds=round(sum(r["seconds"] for r in rows), 1))
        if error:
            facts["error"] = error
        write_json(path, facts)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other searches out of the folder; the system frees the lock when the process ends.

    A line of the journal that a crash has cut off is removed.

    Raises:
        SearchError: If another search works in the folder.
        OutputError: If the folder cannot be written or locked.
    """
    path = folder / JOURNAL
    busy = SearchError(f"another search works in {folder}; wait until it ends")
    with folder_lock(folder, busy) as guarded:
        if not guarded:
            raise OutputError(
                f"no locks available for {folder / LOCK}; --out needs a file system with file locks"
            )
        if path.exists():
            with output_errors(path), path.open("r+b") as journal:
                journal.truncate(journal.read().rfind(b"\n") + 1)
        yield
