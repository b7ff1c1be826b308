"""``ferkit search``: its options, what it refuses, its table while it works, and what it says at the end."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("ray", reason="needs ferkit[tune]")

from ferkit.cli import run
from ferkit.cli.common import data_options
from ferkit.cli.search_command import _duration, _Live, _say
from ferkit.core.errors import SearchError
from ferkit.search import engine
from ferkit.search.records import read_search
from ferkit.search.report import write_report
from ferkit.search.space import parse_space, shipped_spaces
from searchfiles import TINY, write_search

TRIALS = [("finished", [0.3, 0.4, 0.5]), ("stopped", [0.45]), ("failed", [0.2]), ("waiting", [])]


@pytest.fixture
def found(tmp_path):
    """A search with a trial of every state, the last one running in its second epoch."""
    found = read_search(write_search(tmp_path / "s", parse_space(TINY), TRIALS))
    running = found.trials[4]
    running.state, running.epochs = "running", 3
    running.history = [{"epoch": 1, "val_accuracy": 0.35, "seconds": 40.0}]
    return found


def live(found, *, terminal: bool, slots: int = 2) -> tuple[_Live, io.StringIO]:
    table = _Live()
    out = io.StringIO()
    table.console = Console(file=out, width=110, force_terminal=terminal, color_system=None)
    table.search, table.slots = found, slots
    return table, out


def test_the_shipped_spaces_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", "--list"]) == 0
    out = capsys.readouterr().out
    for name in shipped_spaces():
        assert f"\n{name} " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "cartoon"], "name a space to search"),
        (["seed", "--data", "cartoon", "--resume", "x"], "name a space to search"),
        (["nope", "--data", "cartoon"], "no search space 'nope'"),
        (["--resume", "nowhere", "--data", "cartoon:70"], "nowhere holds no search"),
        (["--resume", "x", "--data", "cartoon", "--seed", "3"], "--resume goes on with the search as it was"),
        (["--resume", "x", "--data", "cartoon", "--out", "y"], "--resume goes on with the search as it was"),
        (["seed", "--data", "cartoon", "--retry-failed"], "goes with --resume"),
        (["seed", "--data", "cartoon", "--trials", "0"], "trials must be 1 or more"),
        (["seed", "--data", "cartoon", "--method", "magic"], "random or tpe"),
        (["seed", "--data", "cartoon", "--cores", "0"], "at least one core"),
        (["seed", "--data", "cartoon", "--gpus", "1.5"], "whole ones"),
        (["seed", "--data", "cartoon", "--set", "epoch=3"], "did you mean 'epochs'"),
        (["seed", "--data", "cartoon", "--address", "ray://x:1"], "Ray's client tta"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["search", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1
    assert message.replace("nowhere holds", "holds") in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grace", "2"], "they go with --asha"),
        (["--method", "tpe", "--reduction", "2"], "they go with --asha"),
        (["--draw-only", "--method", "tpe"], "--draw-only shows what random search would train"),
        (["--draw-only", "--asha"], "it takes only what decides the draw"),
        (["--draw-only", "--max-hours", "2"], "it takes only what decides the draw"),
        (["--draw-only", "--max-epochs", "2"], "it takes only what decides the draw"),
        (["--draw-only", "--retries", "0"], "it takes only what decides the draw"),
        (["--draw-only", "--parallel", "2"], "it takes only what decides the draw"),
        (["--draw-only", "--out", "s"], "it takes only what decides the draw"),
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments, message, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["search", "seed", "--data", "cartoon", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def ending(tmp_path, monkeypatch):
    """A search over TINY that stands in the folder ``s``; ends as it is told, at once or after it began."""
    monkeypatch.chdir(tmp_path)
    folder = write_search(tmp_path / "s", parse_space(TINY), TRIALS)

    def end(error: BaseException, *, begun: bool) -> None:
        def resume(out, dataset, *, watcher, **_):
            if begun:
                watcher.began(read_search(folder), 2)
            raise error

        monkeypatch.setattr(engine, "resume", resume)

    return end


RESUME = ["search", "--resume", "s", "--data", "cartoon:70", "--parallel", "2", "--gpus", "0.5", "--quiet"]


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [(KeyboardInterrupt(), 130, "interrupted"), (SearchError("that went wrong"), 1, "ended by an error")],
)
def test_a_search_that_ends_early_reports_what_is_done_and_how_to_go_on(
    ending, capsys, error, status, word
) -> None:
    ending(error, begun=True)
    assert run(RESUME) == status
    captured = capsys.readouterr()
    assert "best: trial 1" in captured.out
    assert Path("s/leaderboard.csv").is_file()
    go_on = f"{word}; go on with: ferkit search --resume s --data cartoon:70 --gpus 0.5 --parallel 2"
    assert go_on in captured.err.splitlines()
    assert ("error: that went wrong" in captured.err) is (status == 1)


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (SearchError("not here"), 1)])
def test_what_ends_before_the_search_begins_does_not_report_an_earlier_one(
    ending, capsys, error, status
) -> None:
    ending(error, begun=False)
    assert run(RESUME) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "go on with" not in captured.err
    assert not Path("s/leaderboard.csv").exists()


@pytest.mark.parametrize("change", [{"asha": True}, {"max_hours": 9.0}, {"max_epochs": 99}])
def test_the_time_left_is_an_upper_bound_where_a_search_may_end_sooner(found, change) -> None:
    table, _ = live(replace(found, settings=replace(found.settings, **change)), terminal=True)
    assert table.head().endswith(", at most 15 s left")


def test_the_table_shows_every_trial_with_its_state_and_what_is_left(found) -> None:
    table, out = live(found, terminal=True)
    table.console.print(table.table())
    text = out.getvalue()
    # Two epochs are open, those done took 15 s on average, and two trials run at a time.
    assert "3 of 4 done, best 50.00 % (trial 1), about 15 s left" in text
    rows = [line.split() for line in text.splitlines()[2:]]
    assert [row[0] for row in rows] == ["4", "1", "2", "3"]  # running first, then the best
    assert rows[0][-6:] == ["1/3", "35.00", "%", "running", "80", "s"]
    assert [row[-1] for row in rows[1:]] == ["finished", "stopped", "failed"]
    assert all(row[1] == "depth" for row in rows)


def test_without_a_terminal_there_is_a_line_for_each_event(found) -> None:
    table, out = live(found, terminal=False)
    table.changed(found.trials[4], "started")
    table.changed(found.trials[4], "epoch")
    table.changed(found.trials[1], "finished")
    table.changed(found.trials[3], "failed")
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("trial 4 started: ")
    assert lines[1].startswith("trial 1 finished: 50.00 % after epoch 3; 3 of 4 done")
    assert lines[2].startswith("trial 3 failed: 20.00 % after epoch 1 (the loss became nan); ")


def test_on_a_terminal_only_what_the_table_does_not_keep_is_printed(found) -> None:
    table, out = live(found, terminal=True)
    for what in ("started", "epoch", "finished", "stopped"):
        table.changed(found.trials[1], what)
    assert out.getvalue() == ""
    found.trials[1].retries = 1
    table.changed(found.trials[1], "retried")
    assert out.getvalue() == "trial 1 retried (1): its worker was lost\n"


def test_a_long_search_shows_the_best_and_says_how_many_more_there_are(tmp_path) -> None:
    trials = [("finished", [0.01 * k]) for k in range(1, 31)]
    found = read_search(write_search(tmp_path / "s", parse_space(TINY), trials))
    table, out = live(found, terminal=True)
    table.console.print(table.table())
    text = out.getvalue()
    assert "30.00 %" in text
    assert "and 18 more that ended" in text
    assert "1.00 %" not in text.replace("31.00 %", "").replace("21.00 %", "")


def test_the_last_words_name_the_best_trial_its_protocol_and_the_next_step(tmp_path, capsys) -> None:
    folder = write_search(tmp_path / "s", parse_space(TINY), TRIALS)
    _say(write_report(folder), data_options("cartoon", Path("my votes.csv")))
    captured = capsys.readouterr()
    assert f"{folder}: 4 drawn, 1 finished, 1 stopped, 1 failed; 0 configurations refused" in captured.out
    assert (
        "best: trial 1, PublicTest 50.00 % (43.14-56.86; single view, last epoch, on the split"
        in captured.out
    )
    assert captured.out.endswith(
        f"ferkit train --recipe {folder / 'winner.toml'} --data cartoon --votes 'my votes.csv'\n"
    )
    assert "no importance" in captured.err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (89.6, "90 s"), (600, "10 min"), (7260, "2 h 01 min"), (90000, "25 h 00 min")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
