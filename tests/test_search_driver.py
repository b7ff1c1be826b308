"""What the conductor hands to Tune and makes of its words, without anything that trains."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ferkit.core.errors import OutputError, SearchError

pytest.importorskip("ray", reason="needs ferkit[tune]")

from ferkit.search.conductor import Conductor, _judge, _last_words, signals_kept
from ferkit.search.engine import Silent
from ferkit.search.propose import Gate, RandomProposer
from ferkit.search.records import JOURNAL, LOCK, Journal, locked, read_events, read_search

from ferkit import __version__
from ferkit.search.cluster import Machine, _temporary_folder, places_of
from ferkit.search.report import shortfall
from ferkit.search.space import parse_space
from ferkit.search.worker import look_around
from searchfiles import TINY, cost_of, write_search

SPACE = parse_space(TINY)


@pytest.fixture
def conductor(tmp_path):
    """Over a search of which one trial is done and two wait; three more are wanted."""
    folder = write_search(
        tmp_path / "s", SPACE, [("finished", [0.3, 0.5]), ("running", [0.2]), ("waiting", [])]
    )
    found = read_search(folder)
    found = replace(found, settings=replace(found.settings, trials=6))
    gate = Gate(SPACE, found.settings, cost_of)
    gate.remember(t.values for t in found.trials.values())
    with contextlib.closing(Journal(folder / JOURNAL)) as journal:
        yield Conductor(found, journal, RandomProposer(gate), Silent(), stops_ray=False)


def test_what_was_interrupted_comes_first_and_then_what_is_new(conductor) -> None:
    assert conductor.wanted() == 5
    assert [conductor.next().number for _ in range(5)] == [2, 3, 4, 5, 6]
    assert conductor.next() is None
    drawn = [e["trial"] for e in read_events(conductor.journal.path) if e["event"] == "drawn"]
    assert drawn == [1, 2, 3, 4, 5, 6]


def test_tune_may_pickle_it_though_it_holds_what_cannot_be_pickled(conductor) -> None:
    # Tune pickles its searcher and callbacks when it starts; a live table's lock is somewhere below them.
    conductor.watcher = threading.Lock()
    pickle.dumps(conductor)


@pytest.mark.parametrize(
    ("limit", "handed_out"),
    [
        # 30 s and three epochs are done: two of the first trial, one of the second, which was interrupted.
        ({"max_hours": 31 / 3600}, [2, 3, 4, 5, 6]),
        ({"max_hours": 29 / 3600}, [2]),
        ({"max_epochs": 4}, [2, 3, 4, 5, 6]),
        ({"max_epochs": 3}, [2]),
    ],
)
def test_once_the_budget_is_used_up_only_what_was_begun_goes_on(conductor, limit, handed_out) -> None:
    conductor.search = replace(conductor.search, settings=replace(conductor.search.settings, **limit))
    trials = iter(conductor.next, None)
    assert [trial.number for trial in trials] == handed_out


class Exhausted(RandomProposer):
    """Has nothing to propose after trial 4."""

    def propose(self, number: int):
        if number > 4:
            raise self.gate.give_up(number, 500)
        return super().propose(number)


def test_when_nothing_more_is_found_what_runs_goes_on_and_the_report_says_why(conductor) -> None:
    conductor.proposer = Exhausted(conductor.proposer.gate)
    assert [trial.number for trial in iter(conductor.next, None)] == [2, 3, 4]
    assert conductor.wrong is None  # which would end what runs
    assert conductor.next() is None
    tried = [e["trial"] for e in read_events(conductor.journal.path) if e["event"] == "gave_up"]
    assert tried == [5]  # once
    found = read_search(conductor.search.folder)
    assert shortfall(found) == [found.gave_up]
    assert "found no configuration for trial 5" in found.gave_up
    conductor.journal.write("session")
    assert shortfall(read_search(conductor.search.folder)) == []


def test_the_end_of_a_trial_holds_its_result_and_how_often_it_began(conductor) -> None:
    trial = conductor.next()
    conductor.started(trial)
    conductor.heard(trial, {"phase": "started"})
    row = {"epoch": 1, "val_accuracy": 0.6, "seconds": 1.0}
    conductor.heard(trial, {"phase": "epoch", "row": row})
    conductor.ended(trial, "stopped", "ASHA")
    end = next(e for e in read_events(conductor.journal.path) if e["event"] == "stopped")
    assert (end["accuracy"], end["epochs"]) == (0.6, 1)
    # It had begun once before, in the session that was interrupted.
    assert (trial.starts, trial.uninterrupted) == (2, False)


def test_only_the_first_end_of_a_trial_counts(conductor) -> None:
    trial = conductor.next()
    conductor.started(trial)
    conductor.heard(trial, {"phase": "started", "hostname": "h", "pid": 7})
    row = {"epoch": 3, "val_accuracy": 0.6, "seconds": 1.0}
    conductor.heard(trial, {"phase": "finished", "row": row})
    conductor.ended(trial, "stopped", "ASHA")  # what Tune says of every trial that ends
    assert (trial.state, trial.accuracy, trial.pid) == ("finished", 0.6, 7)
    ends = [e["event"] for e in read_events(conductor.journal.path) if e.get("trial") == 2]
    assert ends == ["drawn", "started", "started", "finished"]


def test_an_epoch_that_is_told_twice_counts_once(conductor) -> None:
    trial = conductor.next()
    conductor.started(trial)
    for epoch in (1, 2, 1, 2, 3):
        conductor.heard(
            trial, {"phase": "epoch", "row": {"epoch": epoch, "val_accuracy": 0.1 * epoch, "seconds": 1.0}}
        )
    assert [row["epoch"] for row in trial.history] == [1, 2, 3]


def test_what_cannot_be_written_ends_the_search_and_not_the_trial(conductor) -> None:
    trial = conductor.next()
    conductor.started(trial)
    with pytest.raises(OutputError, match="trial 2 cannot go on: disk full"):
        conductor.heard(trial, {"phase": "failed", "reason": "disk full", "halt": True})
    assert read_search(conductor.search.folder).trials[2].state == "waiting"


def trial_of_tune(number: int) -> SimpleNamespace:
    return SimpleNamespace(trial_id=f"new-in-this-session-{number}", config={"number": number})


def test_a_new_asha_scheduler_judges_by_the_trials_of_the_search_so_far(tmp_path) -> None:
    ended = [("finished", [0.5, 0.6, 0.7]), ("stopped", [0.5]), ("failed", [0.5])]
    judge = _judge(read_search(write_search(tmp_path / "s", SPACE, ended)))
    for number, accuracy, expected in ((4, 0.1, "STOP"), (5, 0.9, "CONTINUE")):
        newcomer = trial_of_tune(number)
        judge.on_trial_add(None, newcomer)
        assert judge.on_trial_result(None, newcomer, {"epoch": 1, "val_accuracy": accuracy}) == expected
        judge.on_trial_complete(None, newcomer, {"epoch": 1, "val_accuracy": accuracy})


def test_asha_does_not_judge_an_interrupted_trial_again_where_it_had_passed(tmp_path) -> None:
    """A known fault: resumed at its second epoch, a trial was stopped after the first, by who came later."""
    space = parse_space(TINY, overrides=["epochs=9"])
    later = [("stopped", [0.5])] * 4
    found = read_search(write_search(tmp_path / "s", space, [("running", [0.3, 0.6]), *later]))
    judge = _judge(found)
    again = trial_of_tune(1)
    judge.on_trial_add(None, again)
    for epoch, accuracy, expected in (
        (1, 0.3, "CONTINUE"),  # told again, as the worker does
        (2, 0.6, "CONTINUE"),
        (3, 0.6, "CONTINUE"),  # the first to come there
    ):
        told = {"epoch": epoch, "val_accuracy": accuracy}
        assert judge.on_trial_result(None, again, told) == expected
    other = trial_of_tune(6)
    judge.on_trial_add(None, other)
    assert judge.on_trial_result(None, other, {"epoch": 1, "val_accuracy": 0.6}) == "CONTINUE"
    assert judge.on_trial_result(None, other, {"epoch": 3, "val_accuracy": 0.5}) == "STOP"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Failure # 1\nThe actor 12 is unavailable: RpcError: Socket closed\n", "the worker died"),
        ("Failure # 1\nThe actor died unexpectedly before finishing this task.\n", "the worker died"),
        ("Failure # 1\nActorDiedError\nFailure # 2\nTask was killed due to the node running low on memory.\n"
         "ray.exceptions.OutOfMemoryError\n", "out of memory: Ray ended the worker"),
        ("Failure # 1\nray::train()\n  File x\nValueError: what it was\n", "ValueError: what it was"),
        ("", "without a word"),
    ],
)  # fmt: skip
def test_a_lost_trial_is_explained_in_one_line(tmp_path, text: str, expected: str) -> None:
    path = tmp_path / "error.txt"
    path.write_text(text)
    assert expected in _last_words(SimpleNamespace(error_file=str(path)))
    assert "without a word" in _last_words(SimpleNamespace(error_file=None))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_kept_for_the_end_of_the_step_and_the_second_ctrl_c_is_not(
    conductor, number: int
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with signals_kept(conductor):
        os.kill(os.getpid(), number)
        assert isinstance(conductor.wrong, KeyboardInterrupt)
        assert conductor.next() is None
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({"cores": 0}, "at least one core"),
        ({"gpus": -1.0}, "0 GPUs"),
        ({"parallel": 0}, "at least one trial"),
        ({"gpus": 1.5}, "whole ones"),
        ({"address": "ray://head:10001"}, "Ray's client tta"),
    ],
)
def test_a_machine_that_makes_no_sense_is_refused(machine, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        Machine(**machine)


@pytest.mark.parametrize(
    ("cores", "gpus", "places"),
    [
        (1, 0.0, 8),
        (3, 0.0, 2),
        (1, 1.0, 2),
        (1, 2.0, 1),
        (1, 0.5, 4),
        (1, 0.4, 4),  # two on each; the rests of two GPUs make no place
        (1, 0.1, 8),  # twenty by the GPUs, eight by the cores
        (1, 3.0, 0),
    ],
)
def test_places_follow_from_cores_and_shares_of_single_gpus(cores, gpus, places) -> None:
    assert places_of({"CPU": 8.0, "GPU": 2.0}, Machine(cores=cores, gpus=gpus)) == places


def test_what_a_killed_search_left_is_removed_and_what_a_living_one_uses_is_not(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, strange = tmp_path / "ferkit-left", tmp_path / "ferkit-strange"
    for folder in (left, strange):
        (folder / "session").mkdir(parents=True)
    (left / ".ray-lock").touch()  # Nobody holds it any more.
    with _temporary_folder() as living:
        with _temporary_folder() as second:
            assert set(tmp_path.iterdir()) == {strange, living, second}
        assert living.is_dir()
    assert list(tmp_path.iterdir()) == [strange]


def test_a_finished_search_among_rays_temporary_folders_is_not_taken_for_one(tmp_path, monkeypatch) -> None:
    """A known fault: the next search removed `ferkit-demo` in that place, for its lock's name."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = write_search(tmp_path / "ferkit-demo", SPACE, [("finished", [0.5])])
    with locked(folder / LOCK, 0.0, "search"):
        pass
    with _temporary_folder():
        pass
    assert [t.state for t in read_search(folder).trials.values()] == ["finished"]


def test_a_node_tells_its_version_and_whether_it_sees_the_folder(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    assert look_around(str(tmp_path / "here")) == (__version__, True)
    assert look_around(str(tmp_path / "there")) == (__version__, False)
