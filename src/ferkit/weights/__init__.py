"""The models by name: those of this folder, one ONNX file and one card each, and in a checkout the zoo's."""

from __future__ import annotations

from pathlib import Path

PURPOSES = {
    "fast": "many faces or little power: the most faces per second",
    "standard": "the default: for photos of any quality",
    "best": "the highest accuracy on FER2013: an ensemble, five times the arithmetic",
}
"""The models of the wheel and when to choose each, from the fastest to the most accurate."""

DEFAULT = "standard"
"""Name of the model that is used when none is named."""

_FOLDER = Path(__file__).parent

ZOO = Path(__file__).parents[3] / "zoo"
"""The other models, and the training weights of all, in a checkout; the wheel does not hold them."""


def embedded_models() -> tuple[str, ...]:
    """Return the names of the models in the installed package, from the fastest to the most accurate."""
    order = list(PURPOSES)
    names = {path.stem for path in _FOLDER.glob("*.onnx")}
    return tuple(sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name)))


def zoo_models() -> tuple[str, ...]:
    """Return the names of the models in ``zoo/``; none outside a checkout."""
    return tuple(sorted(path.stem for path in ZOO.glob("*.onnx")))


def find_model(name: str) -> Path | None:
    """Return the file of a model by its name, or None if it is not installed."""
    folder = _FOLDER if name in embedded_models() else ZOO if name in zoo_models() else None
    return None if folder is None else folder / f"{name}.onnx"


def held_models() -> str:
    """Say which models this installation holds, for error messages."""
    held = f"this installation holds {', '.join((*embedded_models(), *zoo_models())) or 'none at all'}"
    return held if zoo_models() else f"{held}; the others are files in zoo/ of ferkit's repository"


def training_weights(name: str) -> Path | None:
    """Return the file of a model's training weights (Keras, float16), or None if it is not here.

    The ONNX graph is folded and cannot be trained; fine-tuning and online distillation start from these.
    """
    path = ZOO / f"{name}.weights.npz"
    return path if find_model(name) is not None and path.is_file() else None
