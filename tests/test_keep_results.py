"""``studies/keep_results.py``: the files that results/ keeps of a model, in reduced size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "studies"))

import keep_results  # found once the folder is on the path


def test_a_report_and_a_run_are_kept_in_reduced_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, report, out = (tmp_path / name for name in ("run", "report", "out"))
    for folder, names in ((run, keep_results.RUN_FILES), (report, keep_results.REPORT_FILES)):
        folder.mkdir()
        for name in names:
            (folder / name).write_text("x = 1\n")
    (run / "history.csv").write_text("epoch,loss\n1,0.123456789012\n2,9.87654321e-05\n")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 4), np.uint8)
    for picture in (run / "curves.png", report / keep_results.CONFUSION):
        Image.fromarray(noise).save(picture)
    scores = {"n": 3, "accuracy": 1 / 3, "reliability": [1, 2]}
    (report / "report.json").write_text(json.dumps({"tta_modes": [{"scores": [scores]}]}, indent=2))

    line = ["keep_results.py", "--run", str(run), "--report", str(report), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    keep_results.main()

    kept = {path.name for path in out.iterdir()}
    assert kept == {*keep_results.RUN_FILES, *keep_results.REPORT_FILES, "confusion.png"}
    text = (out / "report.json").read_text()
    assert json.loads(text) == {"tta_modes": [{"scores": [{"n": 3, "accuracy": 1 / 3}]}]}
    assert text.count("\n") == 1
    assert (out / "history.csv").read_text() == "epoch,loss\n1,0.123457\n2,9.87654e-05\n"
    assert (out / "recipe.toml").read_text() == "x = 1\n"
    with Image.open(out / "confusion.png") as picture:
        assert (picture.mode, picture.size) == ("P", (40, 40))


def test_an_ensemble_has_a_report_only(tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("x = 1\n")
    (tmp_path / "report.json").write_text("{}")
    Image.new("RGB", (4, 4)).save(tmp_path / keep_results.CONFUSION)
    keep_results.keep(None, tmp_path, tmp_path / "out")
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert kept == {*keep_results.REPORT_FILES, "confusion.png"}


def test_nothing_is_written_if_a_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        keep_results.keep(tmp_path / "run", tmp_path / "report", tmp_path / "out")
    assert not (tmp_path / "out").exists()
