"""The fuzzer for clips runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ferkit import weights

FUZZER = Path(__file__).resolve().parents[1] / "fuzz" / "clips.py"


def test_mutated_clips_are_read_or_refused_in_bounded_time_and_memory(tmp_path: Path) -> None:
    if weights.DEFAULT not in weights.embedded_models():
        pytest.skip("NO EMBEDDED MODEL in this checkout")
    command = [sys.executable, str(FUZZER), "--cases", "150", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "150 cases" in done.stdout
    assert " 0 findings" in done.stdout
    assert list(tmp_path.iterdir()) == []
