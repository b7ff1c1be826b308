"""The benchmarks: measuring processes, alternating rounds, the report."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clips import sound_of
from ferkit import weights
from ferkit.video.clip import Clip
from samples import sample

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def imported(name: str) -> Any:
    """A module of the benchmarks, which are outside the package."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def measuring() -> Any:
    return imported("measuring")


@pytest.fixture
def embedded() -> None:
    if weights.DEFAULT not in weights.embedded_models():
        pytest.skip("NO EMBEDDED MODEL in this checkout")


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource usage of a Unix process")
def test_memory_of_a_process_excludes_that_of_the_measuring_process(measuring: Any) -> None:
    """On Linux the peak memory of a child includes that of the process that started it."""
    held = np.ones(50_000_000)  # 400 MiB
    _, _, small = measuring.measure_process(["-c", "pass"])
    seconds, processor, large = measuring.measure_process(["-c", "x = b'1' * 100_000_000"])
    assert held.nbytes > 380 << 20
    assert 2 < small < 60
    assert small + 90 < large < small + 130
    assert 0 < processor <= seconds * 2


def test_the_error_of_a_failed_process_is_its_last_line(measuring: Any) -> None:
    with pytest.raises(RuntimeError, match="no luck"):
        measuring.measure_process(["-c", "raise SystemExit('no luck')"])


def test_a_worker_returns_results_and_survives_a_failed_job(measuring: Any, embedded: None) -> None:
    with measuring.Worker("worker.py", 1) as worker:
        assert worker.call("describe")["mmac"] > 1
        assert worker.call("classify", batch=2, seconds=0.01)["faces_per_s"] > 0
        assert worker.call("matmul", library="numpy", size=64, seconds=0.01)["gmac_per_s"] > 0
        photo = worker.call("photo", path=str(sample("astronaut.jpg")), seconds=0)
        assert photo["faces"] == 1
        with pytest.raises(RuntimeError, match="no/such"):
            worker.call("photo", path="no/such.png", seconds=0)
        assert worker.call("describe")["model"] == weights.DEFAULT  # still running


def test_the_stages_of_a_photo_add_up_to_the_whole(measuring: Any, embedded: None) -> None:
    """A detector created anew for each measurement once made detection alone slower than the whole."""
    with measuring.Worker("worker.py", 1, clock="processor") as worker:
        result = worker.call("stages", path=str(sample("astronaut.jpg")), seconds=0, least=7)
    assert result["faces"] == 1
    assert list(result["stages"]) == ["decode", "detect", "crop", "classify", "draw", "encode"]
    parts = sum(result["stages"][name] for name in ("decode", "detect", "crop", "classify"))
    assert 0.7 < parts / result["whole"] < 1.4


def test_calls_are_timed_alternately_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = imported("jobs")
    now = 0.0
    order: list[str] = []
    monkeypatch.setitem(jobs.CLOCKS, "wall", lambda: now)

    def call(name: str, seconds: float) -> Any:
        def run() -> None:
            nonlocal now
            now += seconds if name in order else 1000
            order.append(name)

        return run

    spent = jobs.per_call_in_turns({"a": call("a", 2), "b": call("b", 3)}, 0, 3)
    assert order == ["a", "b"] * 4
    assert spent == {"a": 2, "b": 3}


def test_a_worker_that_cannot_start_raises_its_error(measuring: Any, tmp_path: Path) -> None:
    with (
        measuring.Worker("worker.py", 1, clock="moon") as worker,
        pytest.raises(RuntimeError, match="invalid choice: 'moon'"),
    ):
        worker.call("describe")


def test_usable_cores_respect_the_limit_of_a_container(
    measuring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control group grants one core although the process is bound to eight."""
    monkeypatch.setattr("ferkit.core.runtime._granted", lambda *_: [1])
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    assert measuring.describe_machine()["usable_cores"] == 1


def test_jobs_alternate_and_give_medians(measuring: Any) -> None:
    order: list[str] = []
    values = iter([100.0, 100.0, 1.0, 10.0, 3.0, 20.0, 2.0, 30.0])

    def job(name: str) -> Any:
        def run() -> float:
            order.append(name)
            return next(values)

        return run

    assert measuring.in_turns({"a": job("a"), "b": job("b")}, 3) == {"a": 2.0, "b": 20.0}
    assert order == ["a", "b"] * 4


def test_the_report_joins_the_parts_of_all_scripts_and_names_skipped_ones(
    measuring: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = measuring.describe_machine()
    rows = {"one": {"seconds": 0.25, "recall": 0.987, "sizes": [1.2, 3.4]}, "two": {"faces_per_s": 1234.5}}
    measuring.write_report(
        tmp_path,
        "bench",
        {"machine": machine, "parts": {"First": {"note": "A note.", "rows": rows}}},
        ["-x"],
    )
    measuring.write_report(
        tmp_path, "video", {"machine": machine, "parts": {"Second": {"skipped": "no extra"}}}, []
    )
    text = (tmp_path / "README.md").read_text()
    assert "| | ms | recall, % | sizes | faces/s |" in text
    assert "| one | 250 | 98.7 | 1 3 |  |" in text
    assert "| two |  |  |  | 1,234 |" in text
    assert "SKIPPED: no extra" in text
    assert text.index("`python benchmarks/bench.py -x`") < text.index("`python benchmarks/video.py`")
    assert "A note." in capsys.readouterr().out
    assert json.loads((tmp_path / "bench.json").read_text())["parts"]["First"]["rows"] == rows


def test_parts_that_are_not_measured_again_keep_their_run(measuring: Any, tmp_path: Path) -> None:
    titles = ["Frames per second, 1280 x 720", "Memory over a long clip, 320 x 240"]
    rows = {"one": {"frames_per_s": 12.5}}
    machine = {**measuring.describe_machine(), "date": "2001-02-03"}
    held = {"machine": machine, "parts": {title: {"rows": rows} for title in titles}}
    measuring.write_report(tmp_path, "video", held, ["--minutes", "9"])
    line = [sys.executable, str(FOLDER / "video.py"), "--parts", "accuracy", "--out", str(tmp_path)]
    subprocess.run(line, capture_output=True, check=True)
    report = json.loads((tmp_path / "video.json").read_text())
    assert list(report["parts"]) == [titles[0], "Rarer detection, labelled faces", titles[1]]
    earlier = {"command": "python benchmarks/video.py --minutes 9", "machine": machine, "rows": rows}
    assert [report["parts"][title] for title in titles] == [earlier, earlier]
    text = (tmp_path / "README.md").read_text()
    assert text.count("From an earlier run, `python benchmarks/video.py --minutes 9`: ") == 2
    assert text.count("2001-02-03") == 2


def test_the_long_clip_has_all_frames_and_sound(tmp_path: Path) -> None:
    video = imported("video")
    frames = [np.full((36, 64, 3), 40 * k, np.uint8) for k in range(5)]
    for sound in (False, True):
        clip = Clip(video.write_long(tmp_path / "long.mp4", frames, 20, sound=sound))
        assert [frame.time for frame in clip.frames()] == [Fraction(k, 30) for k in range(600)]
        assert clip.notes == ()
        assert clip.info.audio == (("aac",) if sound else ())
    begin, samples = sound_of(tmp_path / "long.mp4")
    assert begin == pytest.approx(0, abs=0.05)
    assert len(samples) / 48_000 == pytest.approx(20, abs=0.1)
    assert np.abs(samples).mean() > 0.1


def test_without_the_peer_the_comparison_is_skipped_and_names_make_peer(tmp_path: Path) -> None:
    line = [sys.executable, str(FOLDER / "peer.py"), "--peer-venv", str(tmp_path / "none")]
    done = subprocess.run([*line, "--out", str(tmp_path)], capture_output=True, text=True, check=True)
    assert "SKIPPED" in done.stderr
    assert "make peer" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_batch_is_measured_from_its_first_rows_to_its_last(
    measuring: Any, embedded: None, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow", reason="batches need ferkit[batch]")
    folder = imported("batch").link_photos(tmp_path, [sample("astronaut.jpg")], 130, 96)
    assert len(list(folder.iterdir())) == 130
    with measuring.Worker("batch_worker.py", 1) as worker:
        result = worker.call("engine", folder=str(folder), kind="local", workers=2)
        assert set(result) == {"photos_per_s", "processor"}
        assert all(value > 0 for value in result.values())
        assert worker.call("loop", folder=str(folder))["photos_per_s"] > 0
