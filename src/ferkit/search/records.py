"""What a search leaves in its folder: a journal of what happened, and the trials that follow from it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ferkit.core.errors import OutputError, SearchError
from ferkit.core.files import write_json, write_text
from ferkit.search.space import Space, Values, parse_space
from ferkit.training.history import Row
from ferkit.training.recipe import dump_recipe, load_recipe
from ferkit.training.runs import HISTORY, RUN

JOURNAL = "journal.jsonl"
SETTINGS = "search.json"
SPACE = "space.toml"
BASE = "base.toml"
TRIALS = "trials"
LOCK = ".lock"

State = Literal["waiting", "running", "finished", "stopped", "failed"]
ENDS = ("finished", "stopped", "failed")
"""States in which a trial stays, and the events that say so."""

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides a search, beside its space and the data; ``search.json`` holds it.

    Args:
        trials: How many configurations are trained.
        method: ``random`` or ``tpe`` (Bergstra et al. 2011, Optuna's).
        seed: Of the drawn configurations.
        asha: Whether poor trials are stopped early (Li et al. 2020).
        grace: ASHA: epochs that every trial gets.
        reduction: ASHA: one in so many goes on at each rung.
        max_mmac: Refuse networks of more millions of multiplications a face; None: none.
        max_params: Refuse networks of more parameters; None: none.
        max_hours: Begin no trial once all have trained for so long together; None: no limit.
        max_epochs: Begin no trial once all have done so many epochs together; None: no limit.
        retries: How often a trial is started again whose worker was lost.
    """

    trials: int
    method: Literal["random", "tpe"] = "random"
    seed: int = 0
    asha: bool = False
    grace: int = 1
    reduction: float = 3.0
    max_mmac: float | None = None
    max_params: int | None = None
    max_hours: float | None = None
    max_epochs: int | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        """Refuse numbers that make no search."""
        for name, value, least in (
            ("trials", self.trials, 1),
            ("grace", self.grace, 1),
            ("retries", self.retries, 0),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise SearchError(f"{name} must be {least} or more. Received: {value}")
        if self.method not in ("random", "tpe"):
            raise SearchError(f"method is random or tpe. Received: {self.method!r}")
        if not self.reduction > 1:
            raise SearchError(f"reduction must lie above 1. Received: {self.reduction}")
        for name, limit in (
            ("max_mmac", self.max_mmac),
            ("max_params", self.max_params),
            ("max_hours", self.max_hours),
            ("max_epochs", self.max_epochs),
        ):
            if limit is not None and not limit > 0:
                raise SearchError(f"{name} must lie above 0. Received: {limit}")


@dataclass(slots=True)
class Trial:
    """One configuration and what became of it.

    Args:
        number: From 1, in the order of drawing.
        values: The configuration.
        parameters: Parameters of the network.
        mmac: Millions of multiplications a face.
        state: Where it is.
        reason: Why it failed or was stopped.
        retries: How often its worker was lost.
        history: One row per epoch done.
        epochs: How many epochs its recipe has.
        began: When it was last started, seconds since 1970; 0: never.
        busy: Seconds that it held its place, start-up included, since its search was last begun or resumed.
        ended: When it was finished, stopped or failed, seconds since 1970; 0: not yet.
        starts: How often its training began; more than once where it was interrupted or lost.
        result: Validation accuracy when it ended, 0..1, as the journal has it; None: not ended, or an older
            journal.
        host: Machine that it runs on.
        pid: Its process there.
    """

    number: int
    values: Values
    parameters: int
    mmac: float
    state: State = "waiting"
    reason: str = ""
    retries: int = 0
    history: list[Row] = field(default_factory=list)
    epochs: int = 0
    began: float = 0.0
    busy: float = 0.0
    ended: float = 0.0
    starts: int = 0
    result: float | None = None
    host: str = ""
    pid: int = 0

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy after the last epoch, 0..1."""
        if self.result is not None:
            return self.result
        return self.history[-1]["val_accuracy"] if self.history else None

    @property
    def uninterrupted(self) -> bool:
        """Whether it ended as it began, in one go: only then do ``busy`` and ``seconds`` go together."""
        return bool(self.ended) and self.starts == 1 and not self.retries

    @property
    def seconds(self) -> float:
        """Seconds of training, without start-up and validation."""
        return sum(row["seconds"] for row in self.history)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A configuration that was drawn and not trained."""

    number: int
    values: Values
    parameters: int
    mmac: float
    reason: str


@dataclass(frozen=True, slots=True)
class Search:
    """A search's folder, read.

    Args:
        folder: Where it lies.
        space: What is searched.
        settings: How.
        facts: The rest of ``search.json``: data, versions, command.
        trials: By number.
        refused: In the order of drawing.
        gave_up: Why the last session found no further configuration; empty: it did, or looked for none.
    """

    folder: Path
    space: Space
    settings: Settings
    facts: dict[str, Any]
    trials: dict[int, Trial]
    refused: list[Refusal]
    gave_up: str = ""

    @property
    def epochs(self) -> int:
        """Epochs that all trials have done together."""
        return sum(len(trial.history) for trial in self.trials.values())

    @property
    def hours(self) -> float:
        """Hours that all trials have trained together."""
        return sum(trial.seconds for trial in self.trials.values()) / 3600

    def trial_folder(self, number: int) -> Path:
        """Return the run's folder of a trial."""
        return trial_folder(self.folder, number)

    def trial_name(self, number: int) -> str:
        """Return the name in a trial's recipe."""
        return f"{self.space.name}-{number:04d}"

    def finished(self) -> list[Trial]:
        """Return the trials that trained to their end, the best first; ties go to the cheaper network."""
        done = [t for t in self.trials.values() if t.state == "finished" and t.accuracy is not None]
        return sorted(done, key=lambda t: (-(t.accuracy or 0.0), t.mmac, t.number))


def trial_folder(folder: Path, number: int) -> Path:
    """Return the run's folder of a trial of the search in ``folder``."""
    return folder / TRIALS / f"{number:04d}"


class Journal:
    """An append-only file of events, one JSON object a line; a line that was cut off by a crash is dropped.

    Args:
        path: The file; it may exist.

    Raises:
        OutputError: If it cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            whole = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.ftruncate(self._file, whole)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error

    def write(self, event: str, **facts: Any) -> None:
        """Append an event and wait until the disk has it.

        Raises:
            OutputError: If the disk is full; the journal is then as it was.
        """
        content = {"event": event, **facts, "time": round(time.time(), 3)}
        line = json.dumps(content, allow_nan=False).encode() + b"\n"
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, size)
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of a journal.

    Raises:
        SearchError: If a line other than the last is damaged.
    """
    lines = path.read_bytes().split(b"\n")
    for place, line in enumerate(lines[:-1], start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise SearchError(f"{path}, line {place}: damaged: {error}") from error


def create_search(folder: Path, space: Space, settings: Settings, facts: Mapping[str, Any]) -> None:
    """Write what decides a search into a new folder.

    Raises:
        SearchError: If the folder holds a search already.
        OutputError: If it cannot be written.
    """
    refuse_occupied(folder)
    write_text(folder / SPACE, space.text)
    write_text(folder / BASE, dump_recipe(space.base))
    write_settings(folder, settings, {**facts, "overrides": list(space.overrides)})


def refuse_occupied(folder: Path) -> None:
    """Refuse a folder that holds a search.

    Raises:
        SearchError: If it does.
    """
    if (folder / SETTINGS).exists():
        raise SearchError(f"{folder} holds a search already; --resume goes on with it, or name another --out")


def write_settings(folder: Path, settings: Settings, facts: Mapping[str, Any]) -> None:
    """Write ``search.json``.

    Raises:
        OutputError: If it cannot be written.
    """
    write_json(folder / SETTINGS, {**facts, "settings": asdict(settings)})


def read_search(folder: str | Path) -> Search:
    """Read a search's folder, whether it is finished or not.

    Raises:
        SearchError: If the folder holds no search, or one that is damaged.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise SearchError(f"{folder} holds no search: it has no {SETTINGS}")
    try:
        facts = json.loads((folder / SETTINGS).read_text("utf-8"))
        settings = Settings(**facts.pop("settings"))
        overrides = [str(text) for text in facts["overrides"]]
        text = (folder / SPACE).read_text("utf-8")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SearchError(f"{folder} is no search that this version can read: {error!r}") from error
    base = load_recipe(folder / BASE)
    space = parse_space(text, str(folder / SPACE), base=base, overrides=overrides)
    events = list(read_events(folder / JOURNAL)) if (folder / JOURNAL).exists() else []
    trials, refused = fold(events)
    gave_up = ""
    for event in events:
        if event["event"] in ("session", "gave_up"):
            gave_up = event.get("reason", "")
    # A run that ended may be trained on by other commands, which is no part of the search.
    counted = {e["trial"]: e["epochs"] for e in events if e["event"] in ENDS and "epochs" in e}
    for trial in trials.values():
        trial.epochs = space.recipe(trial.values, space.name).epochs
        most = trial.epochs if trial.state == "waiting" else counted.get(trial.number, trial.epochs)
        history = read_history(trial_folder(folder, trial.number))
        trial.history = [row for row in history if row["epoch"] <= most]
    return Search(folder, space, settings, facts, trials, refused, gave_up)


def read_history(folder: Path) -> list[Row]:
    """Return a run's epochs so far; none where there is no history yet."""
    try:
        rows: list[Row] = json.loads((folder / HISTORY).read_text("utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise SearchError(f"{folder / HISTORY} cannot be read: {error}") from error
    return rows


def fold(events: Iterator[Event] | Sequence[Event]) -> tuple[dict[int, Trial], list[Refusal]]:
    """Return the trials and refusals that a journal's events amount to.

    A trial that was running when the journal ends is waiting again.
    """
    trials: dict[int, Trial] = {}
    refused: list[Refusal] = []
    for event in events:
        kind = event["event"]
        if kind == "refused":
            refused.append(
                Refusal(event["trial"], event["values"], event["parameters"], event["mmac"], event["reason"])
            )
        elif kind == "drawn":
            number = event["trial"]
            trials[number] = Trial(number, event["values"], event["parameters"], event["mmac"])
        elif kind == "started":
            trials[event["trial"]].began = event["time"]
            trials[event["trial"]].starts += 1
        elif kind == "retried":
            trials[event["trial"]].retries += 1
        elif kind in ENDS:
            trial = trials[event["trial"]]
            trial.state, trial.reason = kind, event.get("reason", "")
            trial.busy, trial.ended = event["busy"], event["time"]
            trial.result = event.get("accuracy")
        elif kind == "again":
            trial = trials[event["trial"]]
            trial.state, trial.reason, trial.result = "waiting", "", None
            trial.busy = trial.ended = 0.0
    return trials, refused


def mark_run(folder: Path, condition: str, error: str = "") -> None:
    """Say in a run's ``run.json`` how its trial ended, where the run itself could not: it was killed.

    Raises:
        OutputError: If it cannot be written.
    """
    path = folder / RUN
    try:
        facts = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return  # Killed before it had said anything about itself.
    if facts.get("state") == "running":
        rows = read_history(folder)
        facts.update(state=condition, epochs=len(rows), seconds=round(sum(r["seconds"] for r in rows), 1))
        if error:
            facts["error"] = error
        write_json(path, facts)


@contextlib.contextmanager
def locked(path: Path, patience: float, who: str) -> Iterator[None]:
    """Hold a lock file while the block runs; the system frees it when the process ends, however it ends.

    Raises:
        SearchError: If another process still holds it after ``patience`` seconds, or there are no locks here.
        OutputError: If it cannot be written.
    """
    try:
        import fcntl
    except ModuleNotFoundError as error:
        raise SearchError(
            "a search needs the file locks of Unix, and this system has none; on Windows, run it in WSL"
        ) from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    with stream:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise SearchError(
                        f"{path.parent} is in use by another {who}; wait for it to end"
                    ) from None
                time.sleep(0.2)
            except OSError as error:
                raise SearchError(
                    f"{path.parent} lies where files cannot be locked ({error.strerror or error}); choose a "
                    "folder of a file system that supports flock"
                ) from error
        yield
