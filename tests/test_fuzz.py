"""The fuzzer for photos runs, and sees what it is there to see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FUZZER = Path(__file__).resolve().parents[1] / "fuzz" / "photos.py"


def test_mutated_pictures_are_read_or_refused_in_bounded_time_and_memory(tmp_path: Path) -> None:
    command = [sys.executable, str(FUZZER), "--decode", "1500", "--pipeline", "0", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1,500 cases" in done.stdout
    assert " 0 findings" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_exceeds_a_limit_is_kept_and_named(tmp_path: Path) -> None:
    command = [sys.executable, str(FUZZER), "--decode", "3", "--pipeline", "0", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--seconds", "0"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "3 findings" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decode-0", "decode-1", "decode-2"]
