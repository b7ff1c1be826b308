"""Shared fixtures: the real data beside the repository, and a summary of skipped tests."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ferkit.data import FaceDataset

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True)
def no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are as wide as in a file, whatever window the tests run in: pytest-xdist passes its size on."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("LINES", raising=False)


@pytest.fixture(autouse=True)
def unoptimized_graphs() -> None:
    """Skip TensorFlow's graph optimizer: on networks as small as the tests' it takes a third of the time.

    Tests that train in a process of their own keep it, as users do.
    """
    if (tensorflow := sys.modules.get("tensorflow")) is not None:
        tensorflow.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder ``shared`` beside the clone: FER2013 and real photos; without it the test is skipped."""
    if not (SHARED / "data").is_dir():
        pytest.skip("REAL DATA ABSENT: no folder `shared` with FER2013 and photos beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def fer2013(shared_dir: Path) -> FaceDataset:
    """The real FER2013 with its FER+ votes, read once, through the user's own cache."""
    from ferkit.data import load_data

    data = shared_dir / "data"
    return load_data(data / "fer2013.csv.gz", votes=data / "fer2013new.csv")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests were skipped, and why, below the coverage table."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    reasons: dict[str, int] = {}
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        reasons[reason] = reasons.get(reason, 0) + 1
    terminalreporter.section(f"NOT TESTED: {len(skipped)} tests were skipped", sep="!", red=True, bold=True)
    for reason, count in sorted(reasons.items()):
        terminalreporter.line(f"{count:4d} x {reason}", yellow=True)


@pytest.fixture
def ask(capsys):
    """Run a command line; return its status and what it printed."""
    from ferkit.cli import run

    def run_it(*arguments):
        status = run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return SimpleNamespace(status=status, out=captured.out, err=captured.err)

    return run_it
