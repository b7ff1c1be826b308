"""Nothing leaves the machine: no library that ferkit uses looks up a host, and none leaves a device id."""

from __future__ import annotations

import ast
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ferkit.core.extras import LIBRARIES
from modelzoo import write_tiny_model

SOCKET = {"x86_64": 41, "aarch64": 198}
"""Number of the system call ``socket``."""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in SOCKET, reason="system calls are filtered on Linux"
)

REFUSE_NETWORK = f"""
import ctypes, struct
# A filter of system calls, which also covers native code: a datagram socket of the internet, which each
# look-up of a host needs, kills the process. (urllib3 opens a stream socket of ::1 when it is imported.)
steps = [
    (0x20, 0, 0, 0), (0x15, 0, 7, {SOCKET.get(platform.machine())}),  # the call is socket
    (0x20, 0, 0, 16), (0x15, 1, 0, 2), (0x15, 0, 4, 10),  # of AF_INET or AF_INET6
    (0x20, 0, 0, 24), (0x54, 0, 0, 15), (0x15, 0, 1, 2),  # and SOCK_DGRAM
    (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000),  # kill, or allow
]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
call = ctypes.CDLL(None).prctl
assert call(38, 1, 0, 0, 0) == 0
assert call(22, 2, ctypes.byref(Filter(len(steps), ctypes.cast(code, ctypes.c_void_p))), 0, 0) == 0
"""


def offline(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with an empty home folder, killed by its first attempt to use the network."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_", "MPL", "KERAS_HOME"))}
    home.mkdir()
    return subprocess.run(
        [sys.executable, "-c", REFUSE_NETWORK + code],
        env={**kept, "HOME": str(home), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_filter_catches_a_lookup(tmp_path: Path) -> None:
    code = (
        "import socket; socket.socket(socket.AF_UNIX); print('here'); socket.getaddrinfo('example.org', 80)"
    )
    done = offline(code, tmp_path / "home")
    assert (done.stdout, done.returncode) == ("here\n", -signal.SIGSYS)


def test_a_recognizer_leaves_no_file_and_looks_nothing_up(tmp_path: Path) -> None:
    """With its telemetry on, ONNX Runtime 1.32 writes a device id while the session is opened, and looks a
    host up 9 seconds later. The file is what a short test can wait for."""
    model = write_tiny_model(tmp_path / "tiny.onnx")
    code = (
        "import time, numpy, ferkit\n"
        f"recognizer = ferkit.Recognizer({str(model)!r}, detector='none')\n"
        "recognizer.predict(numpy.full((64, 64, 3), 100, numpy.uint8))\n"
        "time.sleep(1)\n"
    )
    done = offline(code, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "home").rglob("*")) == []


def test_onnxruntime_is_imported_in_one_place() -> None:
    """There its telemetry is switched off before."""
    source = Path(__file__).parents[1] / "src" / "ferkit"
    for file in source.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            named = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "onnxruntime" for name in named), file


@pytest.mark.slow
def test_importing_the_libraries_looks_nothing_up(tmp_path: Path) -> None:
    """Of ONNX Runtime only with its telemetry off; Ray's usage statistics begin with its first cluster."""
    modules = [one.module for one in LIBRARIES if one.module != "onnxruntime" and one.version()]
    code = (
        "import importlib, time\n"
        "from ferkit.core.runtime import load_onnxruntime\n"
        "load_onnxruntime()\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        "import keras, matplotlib.figure, numpy, optuna\n"
        "network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])\n"
        "network.predict(numpy.ones((1, 2)), verbose=0)\n"
        "matplotlib.figure.Figure().savefig('/dev/null', format='png')\n"
        "optuna.logging.set_verbosity(optuna.logging.ERROR)\n"
        "optuna.create_study().optimize(lambda trial: trial.suggest_float('x', 0, 1), n_trials=2)\n"
        "time.sleep(1)\n"
    )
    done = offline(code, tmp_path / "home")
    assert done.returncode == 0, done.stderr[-2000:]
