"""What is loaded when: a light start, and an instrument that needs no training framework."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from ferkit.core.extras import LIBRARIES
from modelzoo import write_tiny_model

BLOCKED = sorted({"jax", "torch", *(one.module for one in LIBRARIES if one.extra)})
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
    """Which of the libraries ``names`` a fresh interpreter has loaded after ``line``."""
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
def test_the_help_of_a_command_starts_no_framework(command: str) -> None:
    line = f"from ferkit.cli import run; run([{command!r}, '--help'])"
    assert heavy_after(line, ("keras", "tensorflow", "onnxruntime", "cv2")) == set()


def test_ground_and_instrument_import_where_no_extra_is_installed() -> None:
    imported = python(
        BLOCK
        + """
import importlib, pkgutil, ferkit
lab = ("data", "augment", "models", "training", "search", "export", "evaluation", "cli", "__main__")
for module in pkgutil.walk_packages(ferkit.__path__, "ferkit."):
    if module.name.split(".")[1] not in lab:
        importlib.import_module(module.name)
        print(module.name)
"""
    ).split()
    assert {"ferkit.core.classifier", "ferkit.core.modelfile", "ferkit.recognize", "ferkit.detect"} <= set(
        imported
    )


def test_predict_reads_a_photo_where_no_extra_is_installed(tmp_path: Path) -> None:
    photo = distribution("scikit-image").locate_file("skimage/data/astronaut.png")
    model = tmp_path / "tiny.onnx"
    write_tiny_model(model)
    out = python(
        f"{BLOCK}\nfrom ferkit.cli import run\n"
        f"sys.exit(run(['predict', {str(photo)!r}, '--model', {str(model)!r}, '--json']))"
    )
    assert json.loads(out)
