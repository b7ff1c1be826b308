"""Photographs that the base install brings along: scikit-image, which deface needs, carries some."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def sample(name: str) -> Path:
    """Return a picture of scikit-image: ``astronaut.png`` and ``camera.png`` show one face each."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "data" / name


FACELESS = (
    "brick.png",
    "cell.png",
    "chelsea.png",  # a cat
    "coffee.png",
    "coins.png",  # with portraits in relief
    "grass.png",
    "horse.png",
    "moon.png",
    "page.png",
    "rocket.jpg",
    "text.png",
)
"""Pictures of scikit-image without a human face; looked at."""
