"""What the driver places, records and ends, without anything that trains; and what Ray offers it."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from ferkit.core.errors import OutputError

pytest.importorskip("ray", reason="needs ferkit[tune]")
pytest.importorskip("optuna", reason="needs ferkit[tune]")

import ray

from ferkit import __version__
from ferkit.core.interrupts import stopping
from ferkit.core.raystart import temporary_folder
from ferkit.search.cluster import Machine, slots_of
from ferkit.search.driver import Callback, _Driver, _explain
from ferkit.search.report import shortfall
from ferkit.search.sampling import CostFilter
from ferkit.search.space import parse_space
from ferkit.search.study import locked, read_search
from ferkit.search.worker import Message, inspect_node
from searchfiles import TINY, cost_of, write_search

SPACE = parse_space(TINY)
SIX = [("finished", [0.3, 0.5]), ("running", [0.2]), *[("waiting", [])] * 4]


def driver_of(folder: Path, callbacks=(), **changes: object) -> _Driver:
    search = read_search(folder)
    search.settings = replace(search.settings, **changes)
    known = [trial.values for trial in search.trials.values()]
    cost_filter = CostFilter(SPACE, search.settings, cost_of, known)
    return _Driver(search, cost_filter, Machine(), callbacks, lambda: None)


def place(driver: _Driver):
    """Take the next trial as the driver does when it has a free slot."""
    trial = driver._next_trial()
    if trial is not None:
        trial.state = "running"
    return trial


def numbers(driver: _Driver) -> list[int]:
    return [trial.number for trial in iter(lambda: place(driver), None)]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A search of six trials: one finished, one interrupted, four wait."""
    return write_search(tmp_path / "s", SPACE, SIX)


def test_interrupted_trials_are_placed_first_and_then_those_that_wait(folder) -> None:
    assert numbers(driver_of(folder)) == [1, 2, 3, 4, 5]


def test_tpe_samples_a_trial_when_there_is_a_slot_for_it(tmp_path) -> None:
    folder = write_search(tmp_path / "s", SPACE, SIX[:2], trials=4, method="tpe")
    assert numbers(driver_of(folder)) == [1, 2, 3]
    assert [t.state for t in read_search(folder).trials.values()] == ["finished", *["waiting"] * 3]


@pytest.mark.parametrize(
    ("limit", "placed"),
    [
        # 30 s and three epochs are done: two of the first trial, one of the second, which was interrupted.
        ({"max_hours": 31 / 3600}, [1, 2, 3, 4, 5]),
        ({"max_hours": 29 / 3600}, [1]),
        ({"max_epochs": 4}, [1, 2, 3, 4, 5]),
        ({"max_epochs": 3}, [1]),
    ],
)
def test_once_the_budget_is_spent_only_interrupted_trials_are_placed(folder, limit, placed) -> None:
    assert numbers(driver_of(folder, **limit)) == placed


def test_an_exhausted_space_ends_no_running_trial_and_the_report_has_the_reason(tmp_path) -> None:
    small = parse_space('name = "s"\nrecipe = "seed"\n[parameters.b]\nkey = "batch_size"\nchoice = [8, 16]')
    folder = write_search(tmp_path / "s", small, [("running", [0.2])], trials=4, method="tpe")
    driver = driver_of(folder)
    driver.cost_filter.space = small
    assert numbers(driver) == [0, 1]
    found = read_search(folder)
    assert "no configuration for trial 2" in found.gave_up
    assert shortfall(found) == [found.gave_up]
    found.save_settings()  # as --resume does
    assert shortfall(read_search(folder)) == []


class Recorder(Callback):
    """Keeps the events of a search."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def on_trial_begin(self, trial) -> None:
        self.events.append(("begin", trial.number))

    def on_epoch_end(self, trial) -> None:
        self.events.append((f"epoch {len(trial.history)}", trial.number))

    def on_trial_retry(self, trial) -> None:
        self.events.append(("retry", trial.number))

    def on_trial_end(self, trial) -> None:
        self.events.append((trial.state, trial.number))


def row(epoch: int, accuracy: float) -> dict[str, float]:
    return {"epoch": epoch, "val_accuracy": accuracy, "seconds": 1.0}


def test_a_trial_is_recorded_from_its_begin_to_its_end(folder) -> None:
    recorder = Recorder()
    driver = driver_of(folder, [recorder])
    trial = place(driver)
    assert not driver._process(trial, Message("begin", [row(1, 0.2)], pid=7))  # the interrupted epoch
    assert not driver._process(trial, Message("epoch", [row(2, 0.4)]))
    assert not driver._process(trial, Message("finished", [row(1, 0.2), row(2, 0.4), row(3, 0.6)]))
    assert (trial.state, trial.accuracy, trial.pid, trial.attempts) == ("finished", 0.6, 7, 2)
    assert recorder.events == [("begin", 1), ("epoch 2", 1), ("epoch 3", 1), ("finished", 1)]
    stored = read_search(folder).study.trials[1]
    assert stored.value == 0.6
    assert stored.intermediate_values == {1: 0.2, 2: 0.4, 3: 0.6}


def test_an_epoch_that_is_reported_again_is_recorded_once(folder) -> None:
    driver = driver_of(folder)
    trial = place(driver)
    for epoch in (1, 2, 1, 2, 3):
        driver._record(trial, row(epoch, 0.1 * epoch))
    assert [r["epoch"] for r in trial.history] == [1, 2, 3]


def test_the_pruner_stops_a_poor_trial(tmp_path) -> None:
    folder = write_search(tmp_path / "s", SPACE, [*[("finished", [0.6])] * 2, ("waiting", [])], asha=True)
    driver = driver_of(folder)
    trial = place(driver)
    driver._process(trial, Message("begin"))
    assert driver._process(trial, Message("epoch", [row(1, 0.1)]))
    again = read_search(folder).trials[2]
    assert (again.state, again.reason, again.accuracy) == ("stopped", "ASHA, after epoch 1", 0.1)


def test_a_lost_trial_is_placed_again_until_its_retries_are_spent(folder) -> None:
    recorder = Recorder()
    driver = driver_of(folder, [recorder], retries=1)
    first = place(driver)
    driver._lose(first, "killed")
    assert place(driver) is first
    driver._lose(first, "killed again")
    assert (first.state, first.reason, first.lost) == ("failed", "after 1 retries: killed again", ["killed"])
    assert recorder.events == [("retry", 1), ("failed", 1)]
    again = read_search(folder).trials[1]
    assert (again.state, again.reason, again.lost) == ("failed", first.reason, first.lost)
    assert place(driver).number == 2


def test_a_run_that_cannot_be_written_ends_the_search_and_not_the_trial(folder) -> None:
    driver = driver_of(folder)
    trial = place(driver)
    with pytest.raises(OutputError, match=r"trial 1 cannot continue: disk full.* --resume"):
        driver._process(trial, Message("unwritable", reason="disk full"))
    assert read_search(folder).trials[1].state == "waiting"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ray.exceptions.ActorUnavailableError("RpcError: Socket closed", b"1" * 16), "the worker died"),
        (ray.exceptions.ActorDiedError(), "the worker died"),
        (ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."),
         "out of memory: Ray ended the worker"),
        (ray.exceptions.RayTaskError("start", "Traceback\n File x\nValueError: what it was", ValueError()),
         "ValueError: what it was"),
    ],
)  # fmt: skip
def test_a_lost_worker_is_explained_in_one_line(error, expected: str) -> None:
    assert expected in _explain(error)
    assert "\n" not in _explain(error)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_deferred_and_a_second_ctrl_c_is_not(number: int) -> None:
    before = signal.getsignal(signal.SIGINT)
    with stopping() as interrupts:
        os.kill(os.getpid(), number)
        assert interrupts.stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("cores", "gpus", "slots"),
    [
        (1, 0.0, 8),
        (3, 0.0, 2),
        (1, 1.0, 2),
        (1, 2.0, 1),
        (1, 0.5, 4),
        (1, 0.4, 4),  # two on each; what is left of two GPUs makes no slot
        (1, 0.1, 8),  # twenty by the GPUs, eight by the cores
        (1, 3.0, 0),
    ],
)
def test_slots_follow_from_cores_and_shares_of_single_gpus(cores, gpus, slots) -> None:
    assert slots_of({"CPU": 8.0, "GPU": 2.0}, Machine(cores=cores, gpus=gpus)) == slots


def test_the_folder_of_a_killed_search_is_removed_and_that_of_a_running_one_is_not(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, other = tmp_path / "ferkit-ray-left", tmp_path / "ferkit-ray-other"
    for path in (left, other):
        (path / "session").mkdir(parents=True)
    (left / ".ray-lock").touch()  # Nobody holds it.
    with temporary_folder() as running:
        with temporary_folder() as second:
            assert set(tmp_path.iterdir()) == {other, running, second}
        assert running.is_dir()
    assert list(tmp_path.iterdir()) == [other]


def test_a_search_beside_rays_temporary_folders_is_left_alone(tmp_path, monkeypatch) -> None:
    """A known fault: the next search removed `ferkit-demo` in that place, because of its lock's name."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = write_search(tmp_path / "ferkit-ray-demo", SPACE, [("finished", [0.5])])
    with locked(folder):
        pass
    with temporary_folder():
        pass
    assert [t.state for t in read_search(folder).trials.values()] == ["finished"]


def test_a_node_reports_its_version_and_whether_it_sees_the_folder(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    assert inspect_node(str(tmp_path / "here")) == (__version__, True)
    assert inspect_node(str(tmp_path / "there")) == (__version__, False)
