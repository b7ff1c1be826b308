"""Photographs: the example of this repository, and those that scikit-image carries."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ASTRONAUT = Path(__file__).parents[1] / "examples" / "astronaut.jpg"


def sample(name: str) -> Path:
    """Return the example or a picture of scikit-image; ``astronaut.jpg`` and ``camera.png`` show one face."""
    if name == ASTRONAUT.name:
        return ASTRONAUT
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
