"""``ferkit search``: options, refusals, the live table, and the result."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("ray", reason="needs ferkit[tune]")
pytest.importorskip("optuna", reason="needs ferkit[tune]")

from ferkit.cli import run
from ferkit.cli.common import data_options
from ferkit.cli.search_command import _print_report, _Progress
from ferkit.core.errors import SearchError
from ferkit.search import driver
from ferkit.search.report import write_report
from ferkit.search.space import parse_space, shipped_spaces
from ferkit.search.study import read_search
from searchfiles import TINY, write_search

TRIALS = [("finished", [0.3, 0.4, 0.5]), ("stopped", [0.45]), ("failed", [0.2]), ("waiting", [])]


@pytest.fixture
def found(tmp_path):
    """A search with a trial in every state; the last one runs in its second epoch."""
    found = read_search(write_search(tmp_path / "s", parse_space(TINY), TRIALS))
    running = found.trials[3]
    running.state = "running"
    running.history = [{"epoch": 1, "val_accuracy": 0.35, "seconds": 40.0}]
    return found


def progress(found, *, terminal: bool, slots: int = 2) -> tuple[_Progress, io.StringIO]:
    table = _Progress()
    out = io.StringIO()
    table.console = Console(file=out, width=110, force_terminal=terminal, color_system=None)
    table.live.console = table.console
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
        (["--data", "cartoon"], "give a space to search"),
        (["seed", "--data", "cartoon", "--resume", "x"], "give a space to search"),
        (["nope", "--data", "cartoon"], "no search space 'nope'"),
        (["--resume", "nowhere", "--data", "cartoon:70"], "nowhere holds no search"),
        (
            ["--resume", "x", "--data", "cartoon", "--seed", "3"],
            "--resume continues a search with the settings it has",
        ),
        (
            ["--resume", "x", "--data", "cartoon", "--out", "y"],
            "--resume continues a search with the settings it has",
        ),
        (["seed", "--data", "cartoon", "--retry-failed"], "--retry-failed needs --resume"),
        (["seed", "--data", "cartoon", "--trials", "0"], "trials must be 1 or more"),
        (["seed", "--data", "cartoon", "--method", "magic"], "random or tpe"),
        (["seed", "--data", "cartoon", "--cores", "0"], "cores and parallel must be 1 or more"),
        (["seed", "--data", "cartoon", "--gpus", "1.5"], "whole number"),
        (["seed", "--data", "cartoon", "--set", "epoch=3"], "did you mean 'epochs'"),
        (["seed", "--data", "cartoon", "--address", "ray://x:1"], "Ray's client protocol"),
    ],
)
def test_an_impossible_request_is_an_error_in_one_line(
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
        (["--grace", "2"], "need --asha"),
        (["--method", "tpe", "--reduction", "2"], "need --asha"),
        (["--draw-only", "--method", "tpe"], "--draw-only shows the trials of a random search"),
        (["--draw-only", "--asha"], "it accepts only --trials"),
        (["--draw-only", "--max-hours", "2"], "it accepts only --trials"),
        (["--draw-only", "--max-epochs", "2"], "it accepts only --trials"),
        (["--draw-only", "--retries", "0"], "it accepts only --trials"),
        (["--draw-only", "--parallel", "2"], "it accepts only --trials"),
        (["--draw-only", "--out", "s"], "it accepts only --trials"),
    ],
)
def test_options_without_effect_are_refused(arguments, message, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["search", "seed", "--data", "cartoon", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def ending(tmp_path, monkeypatch):
    """A search over TINY in the folder ``s`` that ends with an error, at once or after it began."""
    monkeypatch.chdir(tmp_path)
    folder = write_search(tmp_path / "s", parse_space(TINY), TRIALS)

    def end(error: BaseException, *, begun: bool) -> None:
        def resume(out, dataset, *, callbacks, **_):
            if begun:
                callbacks[0].on_search_begin(read_search(folder), 2)
            raise error

        monkeypatch.setattr(driver, "resume", resume)

    return end


RESUME = ["search", "--resume", "s", "--data", "cartoon:70", "--parallel", "2", "--gpus", "0.5", "--quiet"]


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [(KeyboardInterrupt(), 130, "interrupted"), (SearchError("that went wrong"), 1, "ended by an error")],
)
def test_a_search_that_ends_early_reports_its_results_and_how_to_continue(
    ending, capsys, error, status, word
) -> None:
    ending(error, begun=True)
    assert run(RESUME) == status
    captured = capsys.readouterr()
    assert "best: trial 0" in captured.out
    assert Path("s/leaderboard.csv").is_file()
    command = f"{word}; continue with: ferkit search --resume s --data cartoon:70 --gpus 0.5 --parallel 2"
    assert command in captured.err.splitlines()
    assert ("error: that went wrong" in captured.err) is (status == 1)


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (SearchError("not here"), 1)])
def test_an_error_before_the_first_trial_reports_no_earlier_results(ending, capsys, error, status) -> None:
    ending(error, begun=False)
    assert run(RESUME) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "continue with" not in captured.err
    assert not Path("s/leaderboard.csv").exists()


@pytest.mark.parametrize("change", [{"asha": True}, {"max_hours": 9.0}, {"max_epochs": 99}])
def test_the_time_left_is_an_upper_bound_where_a_search_may_end_sooner(found, change) -> None:
    table, _ = progress(replace(found, settings=replace(found.settings, **change)), terminal=True)
    assert table.head().endswith(", at most 15 s left")


def test_the_table_shows_every_trial_with_its_state_and_the_time_left(found) -> None:
    table, out = progress(found, terminal=True)
    table.console.print(table.table())
    text = out.getvalue()
    # Two epochs are open, those done took 15 s on average, and two trials run at a time.
    assert "3 of 4 done, best 50.00 % (trial 0), about 15 s left" in text
    rows = [line.split() for line in text.splitlines()[2:]]
    assert [row[0] for row in rows] == ["3", "0", "1", "2"]  # running first, then the best
    assert rows[0][-8:] == ["1/3", "35.00", "%", "running", "1", "min", "20", "s"]
    assert [row[-1] for row in rows[1:]] == ["finished", "stopped", "failed"]
    assert all(row[1] == "depth" for row in rows)


def test_without_a_terminal_every_event_is_a_line(found) -> None:
    table, out = progress(found, terminal=False)
    table.on_trial_begin(found.trials[3])
    table.on_epoch_end(found.trials[3])
    table.on_trial_end(found.trials[0])
    table.on_trial_end(found.trials[2])
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("trial 3 started: ")
    assert lines[1].startswith("trial 0 finished: 50.00 % after epoch 3; 3 of 4 done")
    assert lines[2].startswith("trial 2 failed: 20.00 % after epoch 1 (the loss became nan); ")


def test_with_a_table_only_retries_and_failures_are_lines(found) -> None:
    table, out = progress(found, terminal=True)
    table.live.auto_refresh = False
    table.on_search_begin(found, 2)
    before = len(out.getvalue())
    try:
        table.on_trial_begin(found.trials[0])
        table.on_epoch_end(found.trials[0])
        table.on_trial_end(found.trials[0])
        table.on_trial_end(found.trials[1])
        assert len(out.getvalue()) == before
        found.trials[0].lost = ["killed"]
        table.on_trial_retry(found.trials[0])
        assert "trial 0 is retried (1): killed" in out.getvalue()
        table.on_trial_end(found.trials[2])
        assert "trial 2 failed" in out.getvalue()
    finally:
        table.close()


def test_a_quiet_search_prints_messages_only(found) -> None:
    table = _Progress(quiet=True)
    out = io.StringIO()
    table.console = Console(file=out, width=110)
    table.on_search_begin(found, 2)
    table.on_trial_begin(found.trials[0])
    table.on_trial_end(found.trials[2])
    table.log("RAY_ADDRESS is ignored")
    table.close()
    assert out.getvalue() == "RAY_ADDRESS is ignored\n"


def test_a_long_search_shows_the_best_trials_and_the_number_of_others(tmp_path) -> None:
    trials = [("finished", [0.01 * k]) for k in range(1, 31)]
    found = read_search(write_search(tmp_path / "s", parse_space(TINY), trials))
    table, out = progress(found, terminal=True)
    table.console.print(table.table())
    text = out.getvalue()
    assert "30.00 %" in text
    assert "and 18 more that ended" in text
    assert "1.00 %" not in text.replace("31.00 %", "").replace("21.00 %", "")


def test_the_result_names_the_best_trial_its_protocol_and_the_next_command(tmp_path, capsys) -> None:
    folder = write_search(tmp_path / "s", parse_space(TINY), TRIALS)
    _print_report(write_report(folder), data_options("cartoon", Path("my votes.csv")))
    captured = capsys.readouterr()
    assert f"{folder}: 4 sampled, 1 finished, 1 stopped, 1 failed; " in captured.out
    assert "best: trial 0, 50.00 % on PublicTest (43.14-56.86; no test-time augmentation, " in captured.out
    assert captured.out.endswith(
        f"ferkit train --recipe {folder / 'winner.toml'} --data cartoon --votes 'my votes.csv'\n"
    )
    assert "no importance" in captured.err
