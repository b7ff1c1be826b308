"""A search's folder: the journal, what follows from it, and damage to it."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import resource
import sys
from dataclasses import asdict

import pytest

from ferkit.core.errors import OutputError, SearchError
from ferkit.search.records import (
    Journal,
    Settings,
    create_search,
    fold,
    locked,
    mark_run,
    read_events,
    read_search,
)
from ferkit.search.space import load_space, parse_space
from searchfiles import TINY, write_search

SPACE = parse_space(TINY)
DRAWN = {"values": {"depth": 1}, "parameters": 5, "mmac": 0.1}


def test_a_search_is_read_as_it_was_written(tmp_path) -> None:
    space = parse_space(TINY, overrides=["epochs=2"])
    settings = Settings(trials=3, method="tpe", asha=True, max_mmac=20.0)
    create_search(tmp_path, space, settings, {"data": {"fingerprint": "f"}})
    found = read_search(tmp_path)
    assert found.settings == settings
    assert found.facts == {"data": {"fingerprint": "f"}, "overrides": ["epochs=2"]}
    assert found.space.parameters == space.parameters
    assert found.space.base == space.base
    assert found.space.fixed == space.fixed
    assert found.space.most_epochs() == 2
    assert (found.trials, found.refused) == ({}, [])


def test_a_shipped_recipe_that_changes_later_does_not_change_a_search(tmp_path) -> None:
    create_search(tmp_path, load_space("compact"), Settings(trials=1), {})
    base = tmp_path / "base.toml"
    base.write_text(base.read_text().replace("label_smoothing = 0.1", "label_smoothing = 0.3"))
    space = read_search(tmp_path).space
    assert space.base.label_smoothing == 0.3


def test_states_follow_from_the_journal(tmp_path) -> None:
    folder = write_search(
        tmp_path / "s", SPACE,
        [("finished", [0.3, 0.5]), ("stopped", [0.1]), ("failed", []), ("running", [0.2]), ("waiting", [])],
    )  # fmt: skip
    trials = read_search(folder).trials
    # Nothing runs while nobody searches: what ran is waiting again.
    assert [t.state for t in trials.values()] == ["finished", "stopped", "failed", "waiting", "waiting"]
    assert [t.accuracy for t in trials.values()] == [0.5, 0.1, None, 0.2, None]
    assert trials[3].reason == "the loss became nan"
    assert trials[1].seconds == 20.0
    assert trials[1].busy == 22.0
    assert trials[1].epochs == 3


def test_a_failed_trial_can_be_set_waiting_again_and_retries_are_counted() -> None:
    events = [
        {"event": "drawn", "trial": 1, **DRAWN, "time": 1.0},
        {"event": "started", "trial": 1, "time": 2.0},
        {"event": "retried", "trial": 1, "reason": "gone", "time": 3.0},
        {"event": "failed", "trial": 1, "reason": "no", "busy": 1.0, "time": 4.0},
    ]
    trials, _ = fold(events)
    assert (trials[1].state, trials[1].reason, trials[1].retries) == ("failed", "no", 1)
    trials, _ = fold([*events, {"event": "again", "trial": 1, "time": 5.0}])
    assert (trials[1].state, trials[1].reason) == ("waiting", "")


def test_only_a_trial_that_ran_in_one_go_says_what_it_took_beside_training() -> None:
    drawn = {"event": "drawn", "trial": 1, **DRAWN, "time": 1.0}
    started = {"event": "started", "trial": 1, "time": 2.0}
    retried = {"event": "retried", "trial": 1, "reason": "gone", "time": 3.0}
    finished = {"event": "finished", "trial": 1, "busy": 1.0, "time": 4.0}
    for between, expected in (([], True), ([started], False), ([retried], False)):
        trials, _ = fold([drawn, started, *between, finished])
        assert trials[1].uninterrupted is expected
    trials, _ = fold([drawn, started])
    assert not trials[1].uninterrupted


@pytest.mark.parametrize("facts", [{"accuracy": 0.5, "epochs": 2}, {}])
def test_a_run_that_is_trained_on_afterwards_keeps_the_result_of_the_search(tmp_path, facts) -> None:
    folder = write_search(tmp_path / "s", SPACE, [("finished", [0.3, 0.4, 0.5])])
    journal = folder / "journal.jsonl"
    *lines, last = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines, json.dumps({**json.loads(last), **facts})]) + "\n")
    history = folder / "trials" / "0001" / "history.json"
    rows = json.loads(history.read_text())
    more = [{**rows[-1], "epoch": epoch, "val_accuracy": 0.9} for epoch in (4, 5)]
    history.write_text(json.dumps(rows + more))
    trial = read_search(folder).trials[1]
    # Older journals name no epochs: then those of the recipe count.
    assert (len(trial.history), trial.accuracy) == (facts.get("epochs", 3), 0.5)


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_that_a_crash_cut_off_is_dropped_and_the_next_one_starts_afresh(tmp_path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.write("drawn", trial=1, **DRAWN)
    journal.write("drawn", trial=2, **DRAWN)
    journal.close()
    path.write_bytes(path.read_bytes()[:-cut])
    assert [event["trial"] for event in read_events(path)] == [1]
    journal = Journal(path)
    journal.write("drawn", trial=3, **DRAWN)
    journal.close()
    assert [event["trial"] for event in read_events(path)] == [1, 3]


def test_a_damaged_line_within_the_journal_is_said_with_its_number(tmp_path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "session"}\n{"eve\n{"event": "session"}\n')
    with pytest.raises(SearchError, match="line 2: damaged"):
        list(read_events(path))


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.write("drawn", trial=1, **DRAWN)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        with pytest.raises(OutputError, match="cannot write"):
            journal.write("drawn", trial=2, **DRAWN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    journal.write("drawn", trial=3, **DRAWN)
    journal.close()
    assert [event["trial"] for event in read_events(path)] == [1, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 0}, "trials must be 1 or more"),
        ({"method": "magic"}, "random or tpe"),
        ({"grace": 0}, "grace"),
        ({"retries": -1}, "retries"),
        ({"seed": -1}, "seed"),
        ({"reduction": 1.0}, "above 1"),
        ({"max_mmac": 0.0}, "max_mmac must lie above 0"),
        ({"max_params": -5}, "max_params"),
        ({"max_hours": 0.0}, "max_hours"),
    ],
)
def test_numbers_that_make_no_search_are_refused(change, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        Settings(**{"trials": 1, **change})


def test_a_folder_holds_one_search(tmp_path) -> None:
    create_search(tmp_path, SPACE, Settings(trials=1), {})
    with pytest.raises(SearchError, match="holds a search already; --resume"):
        create_search(tmp_path, SPACE, Settings(trials=1), {})


def test_a_folder_without_a_search_or_with_a_damaged_one_is_said(tmp_path) -> None:
    with pytest.raises(SearchError, match="holds no search"):
        read_search(tmp_path)
    create_search(tmp_path, SPACE, Settings(trials=1), {})
    settings = asdict(Settings(trials=1))
    for content in ("{", "{}", json.dumps({"settings": {**settings, "colour": 1}, "overrides": []})):
        (tmp_path / "search.json").write_text(content)
        with pytest.raises(SearchError, match="no search that this version can read"):
            read_search(tmp_path)


def test_a_run_that_was_killed_is_marked_and_one_that_ended_by_itself_is_left(tmp_path) -> None:
    folder = write_search(tmp_path / "s", SPACE, [("running", [0.2, 0.3]), ("finished", [0.5])])
    mark_run(folder / "trials" / "0001", "interrupted", "why")
    facts = json.loads((folder / "trials" / "0001" / "run.json").read_text())
    assert (facts["state"], facts["epochs"], facts["seconds"], facts["error"]) == (
        "interrupted",
        2,
        20.0,
        "why",
    )
    mark_run(folder / "trials" / "0002", "stopped")
    assert json.loads((folder / "trials" / "0002" / "run.json").read_text())["state"] == "finished"
    mark_run(folder / "trials" / "0009", "stopped")  # never began


def test_where_files_cannot_be_locked_it_is_said_in_one_line(tmp_path, monkeypatch) -> None:
    """A known fault: a traceback on shared folders, such as NFS without its lock daemon."""

    def refuse(stream, how) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(SearchError, match=r"cannot be locked \(No locks available\); choose a folder"),
        locked(tmp_path / ".lock", 5.0, "search"),
    ):
        pass


def test_a_system_without_the_locks_of_unix_is_refused_before_anything_is_made(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # what makes the import fail, as on Windows
    with pytest.raises(SearchError, match="in WSL"), locked(tmp_path / "s" / ".lock", 0.0, "search"):
        pass
    assert list(tmp_path.iterdir()) == []


def hold(path, ready, release) -> None:
    with locked(path, 0.0, "search"):
        ready.set()
        release.wait(30)


def test_two_searches_do_not_share_a_folder_and_a_killed_one_leaves_no_lock(tmp_path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "s" / ".lock", ready, release))
    process.start()
    assert ready.wait(60)
    with (
        pytest.raises(SearchError, match="in use by another search"),
        locked(tmp_path / "s" / ".lock", 0.0, "search"),
    ):
        pass
    process.kill()
    process.join()
    with locked(tmp_path / "s" / ".lock", 5.0, "search"):
        pass
