"""The fuzzers of photos and of other files run, and report what exceeds a limit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ferkit

FUZZER = Path(__file__).resolve().parents[1] / "fuzz" / "photos.py"


def test_mutated_pictures_are_read_or_refused_in_bounded_time_and_memory(tmp_path: Path) -> None:
    figures, out = tmp_path / "figures.json", tmp_path / "out"
    command = [sys.executable, str(FUZZER), "--decode", "1500", "--pipeline", "0", "--out", str(out)]
    done = subprocess.run(
        [*command, "--seed", "7", "--json", str(figures)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "1,500 cases" in done.stdout
    assert " 0 findings" in done.stdout
    assert list(out.iterdir()) == []
    report = json.loads(figures.read_text())
    assert (report["ferkit"], report["seed"], report["interrupted"]) == (ferkit.__version__, 7, False)
    (run,) = report["runs"]
    assert (run["name"], run["cases"], run["findings"]) == ("decode", 1500, 0)
    assert run["read"] + run["refused"] == 1500
    assert min(run["read"], run["refused"], run["peak_mib"]) > 50
    assert 0 < run["slowest_s"] < 5


def test_mutated_files_of_faces_models_recipes_and_spaces_are_read_or_refused(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs ferkit[tune]")
    out = tmp_path / "out"
    command = [sys.executable, str(FUZZER.with_name("sources.py")), "--cases", "60", "--out", str(out)]
    figures = tmp_path / "figures.json"
    done = subprocess.run([*command, "--json", str(figures)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads(figures.read_text())["runs"]
    assert [run["name"] for run in runs] == ["faces", "votes", "models", "recipes", "spaces"]
    assert {(run["cases"], run["findings"]) for run in runs} == {(60, 0)}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_with_the_figures_so_far(tmp_path: Path, number: signal.Signals) -> None:
    figures, out = tmp_path / "figures.json", tmp_path / "out"
    command = [sys.executable, str(FUZZER), "--decode", "10000000", "--out", str(out), "--json", str(figures)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while time.monotonic() < end and not (out / "current").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(number)
        try:
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()  # nothing where it has ended
    assert process.returncode == 130
    assert "Traceback" not in said
    report = json.loads(figures.read_text())
    assert report["interrupted"]
    (run,) = report["runs"]
    assert 0 < run["cases"] < 10_000_000
    assert list(out.iterdir()) == []


def test_a_case_that_exceeds_a_limit_is_kept_and_named(tmp_path: Path) -> None:
    command = [sys.executable, str(FUZZER), "--decode", "3", "--pipeline", "0", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--seconds", "0"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "3 findings" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decode-0", "decode-1", "decode-2"]
