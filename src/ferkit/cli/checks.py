"""The checks of ``ferkit doctor``: each tries the real thing and names a remedy if it fails."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from ferkit.core.errors import FerkitError, MissingDependencyError
from ferkit.core.extras import LIBRARIES, SYSTEM_LIBRARIES, SYSTEM_LIBRARY, install_command

State = Literal["ok", "missing", "broken", "skipped"]

_REFUSED = f"{MissingDependencyError.__module__}.{MissingDependencyError.__name__}: "
"""What a traceback says before the message of the error."""

_TRY_BASE = (
    "for name in ('numpy', 'PIL.Image', 'pydantic', 'platformdirs', 'rich', 'typer'): require(name, '')"
)
_TRY_OPENCV = "print(require('cv2', '').__version__)"
_TRY_VIDEO = (
    "av = require('av', 'video')\n"
    "codec = '.'.join(str(part) for part in av.library_versions['libavcodec'])\n"
    'print(f"PyAV {av.__version__} with FFmpeg\'s libavcodec {codec}")'
)
_TRY_TENSORFLOW = (
    "import os; os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'\n"
    "keras, tf = (require(name, 'train') for name in ('keras', 'tensorflow'))\n"
    "names = [d.name.removeprefix('/physical_device:') for d in tf.config.list_physical_devices()]\n"
    "print(f'Keras {keras.__version__} on {keras.backend.backend()}; '\n"
    "      f'TensorFlow {tf.__version__} sees {\", \".join(names)}')"
)


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str  # the library or part that was checked
    state: State  # ``ok``; ``missing`` (not installed); ``broken`` (installed and does not work); ``skipped``
    detail: str  # what was found
    remedy: str = ""  # what to do; empty if nothing is wrong
    essential: bool = False  # whether ``ferkit predict`` needs it

    @property
    def fatal(self) -> bool:
        """Whether ``ferkit predict`` cannot work because of this."""
        return self.essential and self.state in ("missing", "broken")


def run_checks(*, full: bool) -> list[Check]:
    """Run all checks; ``full`` starts TensorFlow too, which takes seconds."""
    checks = [check_python(), check_base(), check_opencv()]
    # If the libraries do not load, the model and the detector would only fail for the same reason.
    if not any(check.fatal for check in checks):
        checks += [check_onnxruntime(), check_model(), check_detector()]
    return [*checks, check_cache(), check_video(), check_training(full=full)]


def check_python() -> Check:
    """Check the version of Python."""
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("Python", "ok", version, essential=True)
    return Check("Python", "broken", version, "use Python 3.11, 3.12 or 3.13", essential=True)


def check_base() -> Check:
    """Check that every library of the base install is installed and loads."""
    absent = _absent("")
    if absent:
        return Check("base install", "missing", ", ".join(absent), install_command(""), essential=True)
    check = _try_import("base install", _TRY_BASE, essential=True)
    return replace(check, detail="complete") if check.state == "ok" else check


def check_opencv() -> Check:
    """Import OpenCV."""
    return _try_import("OpenCV", _TRY_OPENCV, essential=True)


def _try_import(name: str, code: str, *, essential: bool = False) -> Check:
    """Run ``code`` in a process of its own; if that fails, name the system libraries that are missing."""
    done = _python(f"from ferkit.core.extras import require\n{code}")
    if done.returncode == 0:
        return Check(name, "ok", _last_line(done.stdout), essential=essential)
    check = _broken(name, _last_line(done.stderr).removeprefix(_REFUSED), essential=essential)
    if missing := missing_system_libraries(done.stderr):
        packages = sorted({SYSTEM_LIBRARIES.get(file, f"(the package of {file})") for file in missing})
        return replace(
            check,
            detail=f"system libraries are missing or too old: {', '.join(missing)}",
            remedy=f"Debian, Ubuntu: apt-get install {' '.join(packages)}",
        )
    return check


def _broken(name: str, message: str, *, essential: bool = True) -> Check:
    """Return the check of a library that does not load, from the message of the error."""
    detail, found, remedy = message.rpartition("; ")
    if not found:
        detail, remedy = message, install_command("")
    return Check(name, "broken", detail, remedy, essential=essential)


def missing_system_libraries(message: str, loads: Callable[[str], bool] | None = None) -> list[str]:
    """Return the shared libraries that are missing or too old when an import failed with ``message``.

    The loader names only the first one. The others in :data:`SYSTEM_LIBRARIES` are tried too, so that one
    installation repairs all.

    ``loads`` returns whether a shared library loads; by default it is tried.
    """
    named = SYSTEM_LIBRARY.search(message)
    if not named:
        return []
    loads = loads or _loads
    return [named[1], *(name for name in SYSTEM_LIBRARIES if name != named[1] and not loads(name))]


def check_onnxruntime() -> Check:
    """Load ONNX Runtime and list its execution providers."""
    from ferkit.core.runtime import load_onnxruntime

    try:
        onnxruntime = load_onnxruntime()
    except MissingDependencyError as error:
        return _broken("ONNX Runtime", str(error))
    providers = ", ".join(
        name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()
    )
    return Check("ONNX Runtime", "ok", f"{onnxruntime.__version__}; runs on: {providers}", essential=True)


def check_model() -> Check:
    """Load the embedded model, which checks its digest, and run it on a blank face."""
    import numpy as np

    from ferkit.core.classifier import FaceClassifier

    try:
        classifier = FaceClassifier()
        size = classifier.info.input_size
        classifier.predict(np.full((1, size, size), 128, np.uint8))
    except FerkitError as error:
        return Check("embedded model", "broken", str(error), "install ferkit again", essential=True)
    info = classifier.info
    taxonomies = ", ".join(head.id for head in info.taxonomies)
    return Check("embedded model", "ok", f"{info.name} {info.version}, {taxonomies}", essential=True)


def check_detector() -> Check:
    """Load the face detector and run it on a blank picture."""
    import numpy as np

    from ferkit.detect import make_detector

    try:
        detector = make_detector()
        detector.detect(np.full((64, 64, 3), 128, np.uint8))
    except FerkitError as error:
        return Check("face detector", "broken", str(error), install_command(""), essential=True)
    return Check("face detector", "ok", detector.name, essential=True)


def check_cache() -> Check:
    """Write a temporary file to the cache folder."""
    from ferkit.core.files import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(b"ferkit")
    except OSError as error:
        return Check(
            "cache folder",
            "broken",
            f"{folder}: {error.strerror or error}",
            "set FERKIT_CACHE to a writable folder; without a cache data loads more slowly",
        )
    return Check("cache folder", "ok", str(folder))


def check_video() -> Check:
    """Import the libraries of the extra ``video``; PyAV includes FFmpeg's."""
    absent = _absent("video")
    if absent:
        return Check("video", "missing", ", ".join(absent), install_command("video"))
    return _try_import("video", _TRY_VIDEO)


def check_training(*, full: bool) -> Check:
    """Start Keras and TensorFlow, and list their devices."""
    absent = _absent("train")
    if absent:
        return Check("training", "missing", ", ".join(absent), install_command("train"))
    if not full:
        return Check("training", "skipped", f"installed; `ferkit doctor --full` starts it; {_precision()}")
    check = _try_import("training", _TRY_TENSORFLOW)
    return replace(check, detail=f"{check.detail}; {_precision()}") if check.state == "ok" else check


def _precision() -> str:
    """Return which precision ``mixed_precision = "auto"`` uses here, and whether oneDNN is switched on."""
    from ferkit.training.precision import choose_precision, onednn_pays

    precision, reason = choose_precision("auto")
    onednn = "; oneDNN is switched on" if onednn_pays() else ""
    return f"mixed_precision auto is {precision} on the CPU ({reason}){onednn}"


def _absent(extra: str) -> list[str]:
    """Return the libraries of an extra (``""``: of the base install) that are not installed."""
    return [one.distributions[0] for one in LIBRARIES if one.extra == extra and not one.version()]


def _python(code: str) -> subprocess.CompletedProcess[str]:
    # In a process of its own, since a library that fails to load may crash the process.
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=dict(os.environ)
    )


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]
