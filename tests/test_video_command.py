"""``ferkit video``: outputs, exit status, and interruption."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelzoo
from clips import number_in, numbered, write_clip
from ferkit import Recognizer
from ferkit.cli import run
from ferkit.core.images import load_image
from ferkit.core.runtime import load_onnxruntime
from ferkit.video.clip import Clip
from samples import sample

FRAMES = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(modelzoo.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("clip") / "face.mp4"
    return str(write_clip(path, [numbered(k) for k in range(FRAMES)], sound="aac", sound_seconds=0.4))


@pytest.fixture(scope="module")
def portrait(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The astronaut, drifting to the right."""
    astronaut = load_image(sample("astronaut.jpg"))[:320, 60:380]
    frames = [np.roll(astronaut, 2 * k, axis=1) for k in range(8)]
    return str(write_clip(tmp_path_factory.mktemp("clip") / "astronaut.mp4", frames))


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def video(*arguments: str | Path) -> int:
    return run(["video", *map(str, arguments)])


def test_the_table_has_a_row_per_track(model: str, portrait: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert video(portrait, "-m", model) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    header, _, track = [line for line in captured.out.splitlines() if line.strip()]
    assert header.split()[:4] == ["track", "time", "seconds", "confidence"]
    assert track.split()[:3] == ["1", "0:00.0-0:00.3", "0.3"]
    assert "100%" in track


def test_all_outputs_are_written_in_one_run(
    model: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = {kind: tmp_path / f"out.{kind}" for kind in ("mp4", "csv", "jsonl", "png")}
    options = ["-o", out["mp4"], "--csv", out["csv"], "--jsonl", out["jsonl"], "--plot", out["png"]]
    assert video(clip, "-m", model, "--detector", "none", *options) == 0
    rows = rows_of(out["csv"].read_text())
    lines = [json.loads(line) for line in out["jsonl"].read_text().splitlines()]
    assert [int(row["frame"]) for row in rows] == [line["index"] for line in lines] == list(range(FRAMES))
    assert [float(row["time"]) for row in rows] == [line["time"] for line in lines]
    assert [float(row["p_happy"]) for row in rows] == [
        line["faces"][0]["probabilities"]["happy"] for line in lines
    ]
    annotated = Clip(out["mp4"])
    assert len(list(annotated.frames())) == FRAMES
    assert annotated.info.audio == ("aac",)
    assert load_image(out["png"]).size
    errors = capsys.readouterr().err.splitlines()
    assert errors == [f"wrote {path}" for path in (out["mp4"], out["csv"], out["jsonl"], out["png"])]
    assert sorted(tmp_path.iterdir()) == sorted(out.values())


def test_the_annotated_clip_has_the_frames_at_their_times_with_drawings(
    model: str, portrait: str, tmp_path: Path
) -> None:
    assert video(portrait, "-m", model, "-o", tmp_path / "out.mp4", "--every", "3") == 0
    drawn, plain = list(Clip(tmp_path / "out.mp4").frames()), list(Clip(portrait, every=3).frames())
    assert [frame.time for frame in drawn] == [frame.time for frame in plain]
    for a, b in zip(drawn, plain, strict=True):
        different = np.abs(a.rgb.astype(int) - b.rgb).max(axis=2) > 60
        assert 0.005 < different.mean() < 0.2


def test_a_table_can_go_to_the_standard_output(
    model: str, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert video(clip, "-m", model, "--detector", "none", "--csv", "-", "--every", "5") == 0
    captured = capsys.readouterr()
    rows = rows_of(captured.out)
    assert [(int(row["frame"]), float(row["time"])) for row in rows] == [(0, 0.0), (5, 5 / 30), (10, 10 / 30)]
    assert captured.err == ""


def test_json_is_the_summary(model: str, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert video(clip, "-m", model, "--detector", "none", "--json", "--taxonomy", "ferplus") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["source"], summary["frames"]) == (clip, FRAMES)
    assert (summary["taxonomy"], summary["notes"]) == ("ferplus", [])
    (track,) = summary["tracks"]
    assert sum(track["seconds_by_label"].values()) == pytest.approx(track["seconds"]) == pytest.approx(0.4)


def test_a_range_and_a_rate_are_respected(model: str, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--from", "0.1", "--to", "0:00.3", "--fps", "15", "--csv", "-"]
    assert video(clip, "-m", model, "--detector", "none", *options) == 0
    rows = rows_of(capsys.readouterr().out)
    assert [round(float(row["time"]) * 30) for row in rows] == [3, 5, 7]


@pytest.mark.parametrize(
    "smoothing",
    [["--no-smoothing"], ["--smoothing", "mean", "--smooth-seconds", "2", "--smooth-space", "log"]],
)
def test_smoothing_can_be_configured(
    model: str, clip: str, smoothing: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert video(clip, "-m", model, "--detector", "none", "--csv", "-", *smoothing) == 0
    rows = rows_of(capsys.readouterr().out)
    same = [row["confidence"] == row["raw_confidence"] for row in rows]
    assert all(same) == (smoothing == ["--no-smoothing"])


def test_test_time_augmentation_is_passed_to_the_recognizer(
    model: str, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert video(clip, "-m", model, "--detector", "none", "--tta", "flip", "--csv", "-") == 0
    found = [float(row["raw_confidence"]) for row in rows_of(capsys.readouterr().out)]
    by_tta = {}
    for tta in ("none", "flip"):
        recognizer = Recognizer(model, detector="none", tta=tta)
        by_tta[tta] = [frame.faces[0].raw.confidence for frame in recognizer.video(clip)]
    assert found == pytest.approx(by_tta["flip"], abs=1e-6)
    assert found != pytest.approx(by_tta["none"], abs=1e-6)


def test_threads_are_passed_to_the_networks(model: str, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked in the options of ONNX Runtime, since threads change no result."""
    onnxruntime = load_onnxruntime()
    given: list[int] = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, model: Any, options: Any, **others: Any) -> None:
            given.append(options.intra_op_num_threads)
            super().__init__(model, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    assert video(clip, "-m", model, "--threads", "1") == 0
    assert set(given) == {1}


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of Unix")
@pytest.mark.parametrize(
    ("name", "options", "known"),
    [("[red] clip.mp4", ["--from", "0.1", "--to", "0.2"], True), ("clip.h264", [], False)],
)
def test_a_terminal_shows_the_share_that_is_read_if_the_length_is_known(
    model: str, tmp_path: Path, name: str, options: list[str], known: bool
) -> None:
    """Brackets in a file name are shown, not taken as markup."""
    import pty

    container = "h264" if name.endswith(".h264") else None
    path = write_clip(tmp_path / name, [numbered(k) for k in range(FRAMES)], container=container)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ferkit", "video", str(path), "-m", model, "--detector", "none"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    shown = b""
    with subprocess.Popen(
        [*command, *options], stderr=theirs, stdout=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(theirs)
        with contextlib.suppress(OSError), os.fdopen(ours, "rb", buffering=0) as screen:
            while part := screen.read(4096):  # ends with an error on Linux
                shown += part
    assert process.returncode == 0
    assert name.encode() in shown
    assert (b"100%" in shown) == known
    assert (b"left" in shown) == known


def test_a_clip_without_a_face_is_not_an_error(
    model: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert video(clip, "-m", model, "-o", tmp_path / "out.mp4", "--plot", tmp_path / "out.png") == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == f"no face was found in {FRAMES} frames"
    assert [number_in(frame.rgb) for frame in Clip(tmp_path / "out.mp4").frames()] == list(range(FRAMES))


def test_silent_leaves_the_audio_out(model: str, clip: str, tmp_path: Path) -> None:
    assert video(clip, "-m", model, "--detector", "none", "-o", tmp_path / "out.mp4", "--silent") == 0
    assert Clip(tmp_path / "out.mp4").info.audio == ()


def test_a_truncated_clip_is_read_as_far_as_possible_with_status_1(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    whole = write_clip(
        tmp_path / "whole.mkv", [rng.integers(0, 256, (48, 80, 3), np.uint8) for _ in range(90)]
    )
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert video(cut, "-m", model, "--detector", "none", "--csv", tmp_path / "out.csv") == 1
    errors = capsys.readouterr().err.splitlines()
    assert any("error: " in line and "the clip declares 3.00 s and ends after" in line for line in errors)
    rows = rows_of((tmp_path / "out.csv").read_text())
    assert 20 < len(rows) < 70


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.mp4"], "no file"),
        (["https://example.org/clip.mp4"], "https://example.org/clip.mp4 is a URL"),
        (["{clip}", "--from", "9"], "has no frame from 9 s on"),
        (["{clip}", "--from", "ten"], "a time is seconds"),
        (["{clip}", "--max-pixels", "1000"], "80 x 48 pixels, more than the limit of 0.001 million"),
        (["{clip}", "--to", "0"], "must end after it starts"),
        (["{clip}", "-o", "{clip}"], "would overwrite the clip itself"),
        (["{clip}", "-o", "{folder}/out.avi"], "a clip is written as .mp4, .mov, .mkv"),
        (["{clip}", "--plot", "{folder}/out.doc"], "a timeline is written as"),
        (["{clip}", "--csv", "{clip}/out.csv"], "cannot write"),
        (["{clip}", "--taxonomy", "mood"], "has no taxonomy 'mood'"),
        (["{clip}", "--provider", "NoSuchExecutionProvider"], "no NoSuchExecutionProvider"),
    ],
)
def test_an_error_is_one_line_and_leaves_no_file(
    model: str,
    clip: str,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [argument.format(clip=clip, folder=tmp_path) for argument in arguments]
    assert video(*given, "-m", model, "--detector", "none") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["{clip}", "--every", "0"],
        ["{clip}", "--fps", "0"],
        ["{clip}", "--every", "2", "--fps", "5"],
        ["{clip}", "--smoothing", "median"],
        ["{clip}", "--max-gap", "-1"],
        ["{clip}", "--json", "--csv", "-"],
        ["{clip}", "--json", "--jsonl", "-"],
        ["{clip}", "--tta", "twice"],
        ["{clip}", "--threads", "0"],
        ["{clip}", "--silent"],
    ],
)
def test_invalid_usage_has_status_2(model: str, clip: str, arguments: list[str]) -> None:
    assert video(*(argument.format(clip=clip) for argument in arguments)) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are those of Unix")
def test_an_error_of_a_full_disk_names_the_output(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A known fault: the error named a hidden temporary file."""
    import resource

    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (240, 320, 3), np.uint8) for _ in range(24)]
    clip = write_clip(tmp_path / "noise.mkv", noise, codec="ffv1")
    out = tmp_path / "faces.mp4"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        assert video(clip, "-m", model, "--detector", "none", "-o", out) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capsys.readouterr().err == f"error: cannot write {out}: File too large\n"
    assert list(tmp_path.iterdir()) == [clip]


def test_without_the_extra_the_error_says_what_to_install(
    model: str, clip: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert video(clip, "-m", model) == 1
    assert "pip install 'ferkit[video]'" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_leaves_files_that_can_be_used(
    model: str, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """The table and the annotated clip have the same frames."""
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (240, 320, 3), np.uint8)
    frames = (np.roll(still, k % 16, axis=1) for k in range(1500))
    long = write_clip(
        tmp_path / "long.mp4",
        frames,
        options={"preset": "ultrafast", "crf": "40"},
        sound="aac",
        sound_seconds=50,
    )
    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, "-m", "ferkit", "video", str(long), "-m", model, "--detector", "none"]
    command += ["-o", str(folder / "out.mp4"), "--csv", str(folder / "out.csv")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while time.monotonic() < end and not any(
            part.stat().st_size > 8192 for part in folder.glob(".out*.csv")
        ):
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors.splitlines()[-1] == "interrupted; the frames until then are written"
    assert "Traceback" not in errors
    rows = rows_of((folder / "out.csv").read_text())
    assert 10 < len(rows) < 1500
    assert all(row["raw_confidence"] for row in rows)
    annotated = Clip(folder / "out.mp4")
    shown = list(annotated.frames())
    assert [float(frame.time) for frame in shown] == pytest.approx([float(row["time"]) for row in rows])
    assert annotated.info.audio == ("aac",)
    assert sorted(path.name for path in folder.iterdir()) == ["out.csv", "out.mp4"]


@pytest.mark.parametrize(
    "given", [("--smoothing", "mean"), ("--smooth-seconds", "1"), ("--smooth-space", "log")]
)
def test_no_smoothing_excludes_the_options_of_smoothing(
    model: str, clip: str, given: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert video(clip, "--model", model, "--no-smoothing", *given) == 2
    assert "--no-smoothing" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_before_the_first_frame_has_the_status_of_an_interruption(
    model: str, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ferkit.video import process as video_process

    real = video_process.process_video

    def interrupted(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(video_process, "process_video", interrupted)
    assert video(clip, "-m", model, "--csv", tmp_path / "out.csv") == 130
    assert "interrupted: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
