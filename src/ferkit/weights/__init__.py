"""The models that come with ferkit: one ONNX file and one card (Markdown) each, in this folder."""

from __future__ import annotations

from pathlib import Path

from ferkit.core.errors import ModelFileError

DEFAULT = "ferkit-distilled"
"""Name of the model that is used when none is named."""

_FOLDER = Path(__file__).parent

ZOO = Path(__file__).parents[3] / "zoo"
"""Training weights of the shipped models, in a checkout; the wheel does not hold them."""


def embedded_models() -> tuple[str, ...]:
    """Return the names of the embedded models, the default first."""
    names = {path.stem for path in _FOLDER.glob("*.onnx")}
    return tuple(sorted(names, key=lambda name: (name != DEFAULT, name)))


def embedded_path(name: str = DEFAULT) -> Path:
    """Return the file of an embedded model.

    Raises:
        ModelFileError: If there is no embedded model of that name.
    """
    path = _FOLDER / f"{name}.onnx"
    if name not in embedded_models():
        have = ", ".join(embedded_models()) or "none at all"
        raise ModelFileError(
            f"no embedded model {name!r}; this installation holds {have}. "
            "Name a model file (`ferkit export` writes them) or reinstall ferkit"
        )
    return path


def training_weights(name: str) -> Path | None:
    """Return the file of a shipped model's training weights (Keras, float16), or None if it is not here.

    The ONNX graph is folded and cannot be trained; fine-tuning and online distillation start from these.
    """
    path = ZOO / f"{name}.weights.npz"
    return path if name in embedded_models() and path.is_file() else None
