"""The table of libraries, and the error where one is missing."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ferkit.core.errors import MissingDependencyError
from ferkit.core.extras import EXTRAS, LIBRARIES, explain_import_error, install_command, require
from samples import ASTRONAUT

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def requirements(extra: str) -> set[str]:
    """Direct requirements of an extra by name, without the extras that it takes in."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return {canonicalize_name(Requirement(line).name) for line in lines} - {"ferkit"}


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_the_table_names_exactly_the_requirements_of_each_extra(extra: str) -> None:
    rows = [library for library in LIBRARIES if library.extra == extra]
    wanted = requirements(extra)
    for library in rows:
        assert wanted & set(library.distributions), library
    assert wanted <= {name for library in rows for name in library.distributions}


def test_every_extra_but_dev_is_one_that_users_choose() -> None:
    assert set(PROJECT["optional-dependencies"]) == {*EXTRAS, "dev"}


def test_dev_takes_in_every_extra() -> None:
    own = next(line for line in PROJECT["optional-dependencies"]["dev"] if line.startswith("ferkit["))
    assert Requirement(own).extras == set(EXTRAS)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda one: one.module)
def test_an_installed_library_has_a_version(library: object) -> None:
    version = library.version()  # type: ignore[attr-defined]
    assert version is not None
    assert re.match(r"\d+\.\d+", version)


def test_any_distribution_that_brings_a_module_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime for GPUs is installed under another name, in place of the one for CPUs."""

    def version(name: str) -> str:
        if name != "onnxruntime-gpu":
            raise metadata.PackageNotFoundError(name)
        return "1.23"

    monkeypatch.setattr(metadata, "version", version)
    found = {library.module: library.version() for library in LIBRARIES}
    assert found["onnxruntime"] == "1.23"
    assert found["numpy"] is None


def test_require_gives_the_module() -> None:
    assert require("tomllib", "train") is tomllib


@pytest.mark.parametrize(
    ("extra", "command"), [("train", "pip install 'ferkit[train]'"), ("", "pip install ferkit")]
)
def test_require_names_the_command_that_installs_what_is_missing(
    extra: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=re.escape(command)) as caught:
        require("onnx", extra)
    assert "'onnx'" in str(caught.value)
    assert install_command(extra) == command


def test_require_names_the_library_below_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "stands_on_another.py").write_text("import the_other\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingDependencyError, match="'the_other'"):
        require("stands_on_another", "tune")


def test_a_library_that_no_extra_brings_has_a_command_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "stands_on_jax.py").write_text("import jax\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(
        MissingDependencyError, match=r"no extra of ferkit brings; run: pip install jax$"
    ) as caught:
        require("stands_on_jax", "train")
    explained = explain_import_error(ModuleNotFoundError("gone", name="jax.numpy"))
    assert str(explained) == str(caught.value)


@pytest.mark.parametrize(
    ("module", "extra"), [("sklearn.metrics", "train"), ("ray", "tune"), ("av", "video"), ("cv2", "")]
)
def test_a_failed_import_is_explained_by_the_extra_that_brings_it(module: str, extra: str) -> None:
    explained = explain_import_error(ModuleNotFoundError("gone", name=module))
    assert explained is not None
    assert str(explained).endswith(install_command(extra))


@pytest.mark.parametrize("name", ["no_such_module", None])
def test_a_failed_import_of_something_else_is_not_explained(name: str | None) -> None:
    assert explain_import_error(ModuleNotFoundError("gone", name=name)) is None


def imported_modules(file: Path) -> set[str]:
    """Top-level names of what a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, "ferkit"}


# Used where a user has them, brought by no install.
WELCOME = {"pandas", "jax", "pydantic_core"}


def test_the_source_imports_only_what_is_a_direct_requirement() -> None:
    source = Path(__file__).parents[1] / "src"
    undeclared = {
        f"{file.relative_to(source)}: {name}"
        for file in source.rglob("*.py")
        for name in imported_modules(file) - {library.module for library in LIBRARIES} - WELCOME
    }
    assert undeclared == set()


GLIBCXX = "/usr/lib/libstdc++.so.6: version `GLIBCXX_3.4.99' not found (required by /site/x.so)"
LIBGL = "libGL.so.1: cannot open shared object file: No such file or directory"
NUMPY = "\n\nIMPORTANT: READ THIS\n\nOriginal error was: libgfortran.so.5: cannot open shared object file\n"
NUMPY_ABI = "numpy.dtype size changed, may indicate binary incompatibility"
TRAIN = ["train", "-r", "seed", "--data", "cartoon:7"]


@pytest.fixture
def break_module(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Put a module that fails to load in front of the real one, in the environment of a new process."""

    def broken(module: str, message: str, error: str = "ImportError") -> dict[str, str]:
        (tmp_path / f"{module}.py").write_text(f"raise {error}({message!r})\n")
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        }

    return broken


@pytest.mark.parametrize(
    ("command", "module", "error", "message", "remedy"),
    [
        (["predict", "photo.jpg"], "cv2", "ImportError", LIBGL, "apt-get install libgl1"),
        (["predict", "photo.jpg"], "onnxruntime", "OSError", GLIBCXX, "apt-get install libstdc++6"),
        (["data", "info", "cartoon:7"], "numpy", "ImportError", NUMPY, "(the package of libgfortran.so.5)"),
        (["doctor"], "pydantic", "ImportError", LIBGL, "apt-get install libgl1"),
        (["models"], "rich", "ImportError", "it is something else", "pip install --force-reinstall rich"),
        (["data", "info", "cartoon:7"], "cv2", "ValueError", NUMPY_ABI, "--force-reinstall opencv-python"),
        (["evaluate", "--data", "cartoon:7"], "typer", "TypeError", "no", "--force-reinstall typer"),
        (TRAIN, "tensorflow", "ImportError", GLIBCXX, "apt-get install libstdc++6"),
        (TRAIN, "keras", "AttributeError", "no attribute", "pip install --force-reinstall keras"),
    ],
)
def test_a_command_names_in_one_line_what_installs_a_library_that_does_not_load(
    break_module: Callable[..., dict[str, str]],
    tmp_path: Path,
    command: list[str],
    module: str,
    error: str,
    message: str,
    remedy: str,
) -> None:
    env = break_module(module, message, error)
    shutil.copy(ASTRONAUT, tmp_path / "photo.jpg")
    done = subprocess.run(
        [sys.executable, "-m", "ferkit", *command],
        env=env, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"error: the library {module!r} is installed and does not load (")
    assert remedy in line


@pytest.mark.parametrize(
    ("module", "error"), [("cv2", "ImportError"), ("onnxruntime", "OSError"), ("pydantic", "ValueError")]
)
def test_a_recognizer_names_what_installs_a_library_that_does_not_load(
    break_module: Callable[..., dict[str, str]], module: str, error: str
) -> None:
    code = (
        "import ferkit\n"
        "try: ferkit.Recognizer()\n"
        "except ferkit.FerkitError as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=break_module(module, LIBGL, error),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith(
        f"MissingDependencyError the library {module!r} is installed and does not load"
    )
    assert done.stdout.endswith("apt-get install libgl1\n")


def test_names_whose_libraries_are_absent_say_so_when_they_are_called(
    break_module: Callable[..., dict[str, str]],
) -> None:
    code = (
        "from ferkit import *\nimport inspect, ferkit\n"
        "assert dict(inspect.getmembers(ferkit))['train'].__name__ == 'train'\n"
        "try: ferkit.train('seed', 'cartoon:7', 'out')\n"
        "except ferkit.FerkitError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=break_module("keras", "no module named keras"), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("the library 'keras' is installed and does not load")


@pytest.mark.parametrize(
    ("module", "error"),
    [("numpy", "ImportError"), ("PIL", "OSError"), ("onnxruntime", "ValueError"), ("cv2", "OSError")],
)
def test_doctor_reports_a_library_that_does_not_load(
    break_module: Callable[..., dict[str, str]], module: str, error: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ferkit", "doctor"],
        env=break_module(module, LIBGL, error), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert "broken" in done.stdout
    assert "libGL.so.1" in done.stdout
    assert "-> Debian, Ubuntu: apt-get install libgl1" in done.stdout


def test_an_error_that_is_not_of_an_import_is_not_explained() -> None:
    import numpy as np

    with pytest.raises(np.linalg.LinAlgError) as caught:
        np.linalg.inv(np.zeros((2, 2)))
    assert explain_import_error(caught.value) is None


def test_an_import_error_of_ferkit_itself_is_not_explained() -> None:
    with pytest.raises(ImportError) as caught:
        from ferkit.core.extras import no_such_name  # type: ignore[attr-defined]  # noqa: F401
    assert explain_import_error(caught.value) is None
