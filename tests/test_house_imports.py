"""Imports: a light start, and an instrument without training frameworks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ferkit.core.extras import LIBRARIES
from modelzoo import write_tiny_model
from samples import ASTRONAUT

BLOCKED = sorted({"jax", "torch", *(one.module for one in LIBRARIES if one.extra)})
# They are the extra "batch" itself; `ferkit predict -o` imports them.
ARROW = tuple(
    f"ferkit.batch.{name}" for name in ("engine", "inputs", "output", "ray_engine", "run", "tables")
)
ROOMS = ("core", "detect", "recognize", "video", "batch", "weights")
HEAVY = ("keras", "tensorflow", "onnxruntime", "cv2", "numpy", "pydantic", "rich")

BLOCK = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked by the test)", name=name)
        return None
sys.meta_path.insert(0, Refuse())
"""


def heavy_after(line: str, names: tuple[str, ...]) -> set[str]:
    """The libraries of ``names`` that a new interpreter has loaded after ``line``."""
    out = python(f"{line}\nimport sys\nprint()\nprint(*(set(sys.modules) & set({names!r})))")
    return set(out.splitlines()[-1].split())


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "import ferkit",
        "from ferkit.cli import run; run(['--help'])",
        "from ferkit.cli import run; run(['--version'])",
        "from ferkit.cli import run; run(['predct'])",
    ],
)
def test_a_light_start_loads_no_heavy_library(line: str) -> None:
    assert heavy_after(line, HEAVY) == set()


@pytest.mark.parametrize("command", ["predict", "data", "train", "evaluate", "export", "ensemble", "doctor"])
def test_the_help_of_a_command_loads_no_framework(command: str) -> None:
    line = f"from ferkit.cli import run; run([{command!r}, '--help'])"
    assert heavy_after(line, ("keras", "tensorflow", "onnxruntime", "cv2")) == set()


def test_core_and_instrument_import_without_any_extra() -> None:
    imported = python(
        BLOCK
        + f"""
import importlib, pkgutil
for room in {ROOMS!r}:
    package = importlib.import_module(f"ferkit.{{room}}")
    for module in pkgutil.walk_packages(package.__path__, f"ferkit.{{room}}."):
        if module.name not in {ARROW!r}:
            importlib.import_module(module.name)
            print(module.name)
"""
    ).split()
    assert {"ferkit.core.classifier", "ferkit.core.modelfile", "ferkit.recognize.recognizer"} <= set(imported)


def test_predict_works_without_any_extra(tmp_path: Path) -> None:
    model = tmp_path / "tiny.onnx"
    write_tiny_model(model)
    out = python(
        f"{BLOCK}\nfrom ferkit.cli import run\n"
        f"sys.exit(run(['predict', {str(ASTRONAUT)!r}, '--model', {str(model)!r}, '--json']))"
    )
    assert json.loads(out)
