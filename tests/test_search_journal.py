"""The folder of a search: the Optuna study in its journal, and damage to it."""

from __future__ import annotations

import json
import multiprocessing
import resource
import subprocess
import sys
from dataclasses import replace

import pytest

pytest.importorskip("optuna", reason="needs ferkit[tune]")

import optuna
from filelock import UnixFileLock

from ferkit.core.errors import OutputError, SearchError
from ferkit.core.files import output_errors
from ferkit.search.sampling import CostFilter, propose
from ferkit.search.space import load_space, parse_space
from ferkit.search.study import JOURNAL, Settings, create_search, locked, mark_run, read_search
from searchfiles import TINY, cost_of, play, write_search

SPACE = parse_space(TINY)
STATES = [
    ("finished", [0.3, 0.5]),
    ("stopped", [0.1]),
    ("failed", []),
    ("running", [0.2]),
    ("waiting", []),
]


def test_a_search_reads_back_as_it_was_written(tmp_path) -> None:
    space = parse_space(TINY, overrides=["epochs=2"])
    settings = Settings(trials=3, method="tpe", asha=True, max_mmac=20.0)
    create_search(tmp_path, space, settings, {"data": {"fingerprint": "f"}})
    found = read_search(tmp_path)
    assert found.settings == settings
    assert found.facts["data"] == {"fingerprint": "f"}
    assert found.space.overrides == ("epochs=2",)
    assert found.space.parameters == space.parameters
    assert found.space.base == space.base
    assert found.space.fixed == space.fixed
    assert (found.trials, found.refused) == ({}, [])
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL]


def test_a_search_keeps_its_base_recipe_when_the_shipped_one_changes(tmp_path, monkeypatch) -> None:
    create_search(tmp_path, load_space("compact"), Settings(trials=1), {})
    monkeypatch.setattr("ferkit.search.space.load_recipe", None)
    assert read_search(tmp_path).space.base == load_space_base("compact")


def load_space_base(name: str):
    from ferkit.training.recipe import load_recipe

    return load_recipe({"compact": "se-resnet"}[name])


def test_the_journal_is_a_study_that_optuna_opens_by_itself(tmp_path) -> None:
    write_search(tmp_path / "s", SPACE, STATES, asha=True)
    # What `optuna-dashboard` does with the file.
    code = (
        "import optuna, sys; from optuna.storages import JournalStorage;"
        "from optuna.storages.journal import JournalFileBackend;"
        "s = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(sys.argv[1])));"
        "states = [t.state.name for t in s.trials];"
        "print(s.study_name, s.best_value, states, s.trials[0].user_attrs['folder'])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "s" / JOURNAL)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert out == "tiny 0.5 ['COMPLETE', 'PRUNED', 'FAIL', 'RUNNING', 'WAITING'] trials/0000\n"


def test_trials_read_back_with_state_result_and_history(tmp_path) -> None:
    found = read_search(write_search(tmp_path / "s", SPACE, STATES))
    trials = list(found.trials.values())
    assert [t.number for t in trials] == [t.number for t in found.study.trials] == [0, 1, 2, 3, 4]
    # Nothing runs while a folder is read: the interrupted trial waits.
    assert [t.state for t in trials] == ["finished", "stopped", "failed", "waiting", "waiting"]
    assert [t.accuracy for t in trials] == [0.5, 0.1, None, 0.2, None]
    assert trials[2].reason == "the loss became nan"
    assert (trials[0].seconds, trials[0].epochs) == (20.0, 3)
    assert trials[3].handle is not None
    assert trials[3].handle.number == 3


def test_a_run_that_is_trained_further_keeps_the_result_of_the_search(tmp_path) -> None:
    folder = write_search(tmp_path / "s", SPACE, [("finished", [0.3, 0.4, 0.5])])
    history = folder / "trials" / "0000" / "history.json"
    rows = json.loads(history.read_text())
    more = [{**rows[-1], "epoch": epoch, "val_accuracy": 0.9} for epoch in (4, 5)]
    history.write_text(json.dumps(rows + more))
    trial = read_search(folder).trials[0]
    assert (len(trial.history), trial.accuracy) == (3, 0.5)


def test_a_failed_trial_that_is_retried_keeps_its_number(tmp_path) -> None:
    search = read_search(write_search(tmp_path / "s", SPACE, [("failed", [0.2]), ("finished", [0.5])]))
    search.add(replace(search.trials[0], state="waiting", reason="", result=None, reported=0))
    again = read_search(search.folder)
    assert {n: t.state for n, t in again.trials.items()} == {0: "waiting", 1: "finished"}
    assert again.trials[0].values == search.trials[0].values
    assert [t.state.name for t in again.study.trials] == ["FAIL", "COMPLETE", "WAITING"]


def test_asha_compares_all_trials_of_the_study_and_a_resumed_trial_once(tmp_path) -> None:
    # Reduction 3: of four values at the first rung, only the best passes.
    trials = [("finished", [0.5, 0.6, 0.7]), ("stopped", [0.5]), ("failed", [0.5]), ("running", [0.4])]
    search = read_search(write_search(tmp_path / "s", SPACE, trials, asha=True))
    known = CostFilter(SPACE, search.settings, cost_of, [t.values for t in search.trials.values()])
    for number, accuracy, pruned in ((4, 0.1, True), (5, 0.9, False)):
        search.add(propose(number, known))
        handle = search.study.ask()
        handle.report(accuracy, 1)
        assert handle.should_prune() is pruned
    # The interrupted trial passed its first rung before: it is not judged there again.
    resumed = read_search(search.folder).trials[3].handle
    resumed.report(0.4, 2)
    assert not resumed.should_prune()


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_that_a_crash_cut_off_is_removed_before_the_next_is_written(tmp_path, cut: int) -> None:
    folder = write_search(tmp_path / "s", SPACE, [("waiting", []), ("waiting", [])])
    path = folder / JOURNAL
    path.write_bytes(path.read_bytes()[:-cut])
    assert list(read_search(folder).trials) == [0]
    with locked(folder):
        search = read_search(folder)
        search.add(propose(1, CostFilter(SPACE, search.settings, cost_of)))
    assert list(read_search(folder).trials) == [0, 1]


def test_a_damaged_journal_is_an_error_with_its_path(tmp_path) -> None:
    folder = write_search(tmp_path / "s", SPACE, [("finished", [0.5])])
    lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    for content in (b"", b"".join([lines[0][:20] + b"\n", *lines[1:]]), lines[0], b'{"op_code": 99}\n'):
        (folder / JOURNAL).write_bytes(content)
        with pytest.raises(SearchError, match=JOURNAL):
            read_search(folder)


def test_a_full_disk_leaves_a_journal_that_reads_back(tmp_path) -> None:
    folder = write_search(tmp_path / "s", SPACE, [("waiting", [])])
    known = CostFilter(SPACE, Settings(trials=3), cost_of)
    search, path = read_search(folder), folder / JOURNAL
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        with pytest.raises(OutputError, match="cannot write"), output_errors(path):
            search.add(propose(1, known))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with locked(folder):
        assert path.read_bytes() == before
        read_search(folder).add(propose(2, known))
    assert list(read_search(folder).trials) == [0, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 0}, "trials must be 1 or more"),
        ({"method": "magic"}, "random or tpe"),
        ({"grace": 0}, "grace"),
        ({"retries": -1}, "retries"),
        ({"seed": -1}, "seed"),
        ({"reduction": 1}, "reduction must be 2 or more"),
        ({"max_mmac": 0.0}, "max_mmac must lie above 0"),
        ({"max_params": -5}, "max_params"),
        ({"max_hours": 0.0}, "max_hours"),
    ],
)
def test_settings_out_of_range_are_refused(change, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        Settings(**{"trials": 1, **change})


def test_a_folder_holds_one_search(tmp_path) -> None:
    create_search(tmp_path, SPACE, Settings(trials=1), {})
    with pytest.raises(SearchError, match=r"holds a search already.* --resume"):
        create_search(tmp_path, SPACE, Settings(trials=1), {})


def test_a_folder_without_a_search_is_an_error(tmp_path) -> None:
    with pytest.raises(SearchError, match="holds no search"):
        read_search(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_study_of_another_version_is_an_error(tmp_path) -> None:
    create_search(tmp_path, SPACE, Settings(trials=1), {})
    read_search(tmp_path).study.set_user_attr("settings", {"trials": 1, "colour": 1})
    with pytest.raises(SearchError, match="another version"):
        read_search(tmp_path)


def test_the_run_of_a_killed_trial_is_marked_and_a_finished_one_is_not(tmp_path) -> None:
    search = read_search(write_search(tmp_path / "s", SPACE, [("running", [0.2, 0.3]), ("waiting", [])]))
    mark_run(search.trial_folder(0), "interrupted", "why")
    facts = json.loads((search.trial_folder(0) / "run.json").read_text())
    assert (facts["state"], facts["epochs"], facts["seconds"]) == ("interrupted", 2, 20.0)
    assert facts["error"] == "why"
    play(search, search.trials[1], "finished", [0.5])
    mark_run(search.trial_folder(1), "stopped")
    assert json.loads((search.trial_folder(1) / "run.json").read_text())["state"] == "finished"
    mark_run(search.trial_folder(9), "stopped")  # never began


def test_a_file_system_without_locks_is_an_error_in_one_line(tmp_path, monkeypatch) -> None:
    """A known fault: a traceback on shared folders, such as NFS without its lock daemon."""

    def refuse(self) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(UnixFileLock, "_acquire", refuse)
    with pytest.raises(OutputError, match=r"no locks available.*file system"), locked(tmp_path):
        pass


def hold(path, ready, release) -> None:
    with locked(path):
        ready.set()
        release.wait(30)


def test_two_searches_do_not_share_a_folder_and_a_killed_one_leaves_no_lock(tmp_path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "s", ready, release))
    process.start()
    assert ready.wait(120)
    with pytest.raises(SearchError, match="another search works in"), locked(tmp_path / "s"):
        pass
    process.kill()
    process.join()
    with locked(tmp_path / "s"):
        pass


def test_optuna_prints_nothing(tmp_path, capfd) -> None:
    write_search(tmp_path / "s", SPACE, STATES)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
