"""``ferkit doctor``: what it finds, what it advises, and when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ferkit import weights
from ferkit.cli import checks, run
from ferkit.cli.checks import Check, missing_system_libraries
from ferkit.core.extras import LIBRARIES, SYSTEM_LIBRARIES, Library
from modelzoo import write_tiny_model

LIBGL = "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"


@pytest.fixture(scope="module")
def report() -> dict[str, object]:
    """What ``ferkit doctor --json`` prints here."""
    done = subprocess.run(
        [sys.executable, "-m", "ferkit", "doctor", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content: dict[str, object] = json.loads(done.stdout)
    return content


def test_everything_works_here(report: dict[str, object]) -> None:
    assert report["works"] is True
    states = {check["name"]: check["state"] for check in report["checks"]}  # type: ignore[attr-defined]
    assert states == {
        "Python": "ok",
        "base install": "ok",
        "OpenCV": "ok",
        "ONNX Runtime": "ok",
        "embedded model": "ok",
        "face detector": "ok",
        "cache folder": "ok",
        "video": "ok",
        "training": "skipped",
    }


def test_every_library_is_listed_with_its_version_and_extra(report: dict[str, object]) -> None:
    listed = {row["name"]: row for row in report["libraries"]}  # type: ignore[attr-defined]
    assert set(listed) == {library.distributions[0] for library in LIBRARIES}
    assert listed["keras"]["extra"] == "train"
    assert listed["numpy"]["extra"] == ""
    assert all(row["version"] for row in listed.values())


def test_the_text_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "Extra train: pip install 'ferkit[train]'" in out
    assert out.endswith("ferkit predict works here.\n")
    assert "-> " not in out  # nothing is wrong, so nothing is advised


@pytest.mark.slow
def test_full_starts_the_training_framework() -> None:
    check = checks.check_training(full=True)
    assert check.state == "ok"
    assert "CPU:0" in check.detail


@pytest.mark.parametrize(
    ("message", "absent", "expected"),
    [
        (LIBGL, {"libGL.so.1"}, ["libGL.so.1"]),
        (LIBGL, {"libGL.so.1", "libglib-2.0.so.0"}, ["libGL.so.1", "libglib-2.0.so.0"]),
        ("ImportError: libodd.so.7: cannot open shared object file: x", set(), ["libodd.so.7"]),
        (
            "/usr/lib/libstdc++.so.6: version `GLIBCXX_3.4.99' not found (required by x)",
            set(),
            ["libstdc++.so.6"],
        ),
        ("ModuleNotFoundError: No module named 'cv2'", {"libGL.so.1"}, []),
        ("", set(), []),
    ],
)
def test_all_missing_system_libraries_are_found_at_once(
    message: str, absent: set[str], expected: list[str]
) -> None:
    assert missing_system_libraries(message, lambda name: name not in absent) == expected


def test_a_missing_system_library_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A module that fails as OpenCV does where the library is absent, found before the real one.
    (tmp_path / "cv2.py").write_text(f"raise ImportError({LIBGL.removeprefix('ImportError: ')!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = checks.check_opencv()
    assert (check.state, check.fatal) == ("broken", True)
    assert "libGL.so.1" in check.detail
    assert check.remedy == f"Debian, Ubuntu: apt-get install {SYSTEM_LIBRARIES['libGL.so.1']}"


def test_an_opencv_that_breaks_otherwise_shows_its_last_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('it is something else')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = checks.check_opencv()
    assert check.state == "broken"
    assert "it is something else" in check.detail
    assert check.remedy.startswith("run: pip install --force-reinstall ")


def test_without_opencv_doctor_fails_and_skips_what_depends_on_it(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('broken')\n")
    done = subprocess.run(
        [sys.executable, "-m", "ferkit", "doctor"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.endswith("ferkit predict does NOT work here; see above.\n")
    assert "embedded model" not in done.stdout
    assert done.stderr == ""


def test_a_cache_folder_that_cannot_be_written_is_reported_and_not_fatal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FERKIT_CACHE", str(tmp_path / "file" / "cache"))
    check = checks.check_cache()
    assert (check.state, check.fatal) == ("broken", False)
    assert "FERKIT_CACHE" in check.remedy


def test_the_cache_folder_is_the_chosen_one_and_stays_empty(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FERKIT_CACHE", str(tmp_path / "cache"))
    check = checks.check_cache()
    assert (check.state, check.detail) == ("ok", str(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_its_library_video_is_missing_and_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Library(("no-such-thing",), "av", "video", "a test")
    monkeypatch.setattr(
        checks, "LIBRARIES", tuple(absent if one.module == "av" else one for one in LIBRARIES)
    )
    check = checks.check_video()
    assert (check.state, check.detail, check.fatal) == ("missing", "no-such-thing", False)
    assert check.remedy == "pip install 'ferkit[video]'"


def test_a_library_of_video_that_does_not_load_shows_its_last_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "av.py").write_text("raise ImportError('it is something else')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = checks.check_video()
    assert check.state == "broken"
    assert "it is something else" in check.detail
    assert check.remedy.startswith("run: pip install --force-reinstall ")


@pytest.mark.parametrize(("module", "check"), [("av", "check_video"), ("tensorflow", "check_training")])
def test_a_system_library_that_an_extra_needs_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, check: str
) -> None:
    (tmp_path / f"{module}.py").write_text(f"raise ImportError({LIBGL.removeprefix('ImportError: ')!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = checks.check_video() if check == "check_video" else checks.check_training(full=True)
    assert (found.state, found.fatal) == ("broken", False)
    assert "libGL.so.1" in found.detail
    assert found.remedy == f"Debian, Ubuntu: apt-get install {SYSTEM_LIBRARIES['libGL.so.1']}"


def test_a_library_of_the_base_that_is_absent_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LIBRARIES", (Library(("no-such-thing",), "no_such_thing", "", "a test"),))
    check = checks.check_base()
    assert (check.state, check.detail, check.fatal) == ("missing", "no-such-thing", True)


def test_a_library_of_training_that_is_absent_is_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Library(("no-such-thing",), "no_such_thing", "train", "a test")
    monkeypatch.setattr(checks, "LIBRARIES", (*LIBRARIES, absent))
    check = checks.check_training(full=True)
    assert (check.state, check.detail, check.fatal) == ("missing", "no-such-thing", False)
    assert check.remedy == "pip install 'ferkit[train]'"


def test_a_training_framework_that_does_not_start_shows_its_last_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "keras.py").write_text("raise ImportError('no backend')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = checks.check_training(full=True)
    assert (check.state, check.remedy) == ("broken", "run: pip install --force-reinstall keras")
    assert "no backend" in check.detail


def test_an_onnxruntime_that_does_not_load_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert checks.check_onnxruntime().fatal


def test_a_missing_embedded_model_is_fatal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights, "_FOLDER", tmp_path)
    check = checks.check_model()
    assert (check.state, check.fatal) == ("broken", True)
    assert weights.DEFAULT in check.detail


def test_a_damaged_embedded_model_is_fatal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = write_tiny_model(tmp_path / f"{weights.DEFAULT}.onnx")
    monkeypatch.setattr(weights, "_FOLDER", tmp_path)
    assert checks.check_model().state == "ok"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert checks.check_model().fatal


def test_a_missing_detector_file_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    check = checks.check_detector()
    assert (check.state, check.fatal) == ("broken", True)


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 14, 0)])
def test_another_python_is_fatal(version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    assert checks.check_python().fatal


@pytest.mark.parametrize(
    ("state", "essential", "fatal"),
    [
        ("ok", True, False),
        ("missing", True, True),
        ("broken", True, True),
        ("broken", False, False),
        ("skipped", True, False),
    ],
)
def test_only_what_predict_needs_is_fatal(state: checks.State, essential: bool, fatal: bool) -> None:
    assert Check("thing", state, "", essential=essential).fatal is fatal
