"""The fuzzer for clips runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ferkit import weights

FUZZER = Path(__file__).resolve().parents[1] / "fuzz" / "clips.py"


def test_mutated_clips_are_read_or_refused_in_bounded_time_and_memory(tmp_path: Path) -> None:
    if weights.DEFAULT not in weights.embedded_models():
        pytest.skip("NO EMBEDDED MODEL in this checkout")
    figures, out = tmp_path / "figures.json", tmp_path / "out"
    command = [sys.executable, str(FUZZER), "--cases", "150", "--out", str(out), "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "150 cases" in done.stdout
    assert " 0 findings" in done.stdout
    assert list(out.iterdir()) == []
    (run,) = json.loads(figures.read_text())["runs"]
    assert (run["name"], run["cases"], run["read"] + run["refused"]) == ("clips", 150, 150)
