"""ONNX Runtime: its import without telemetry, its sessions, providers, threads and errors."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ferkit.core.errors import FerkitError, MissingDependencyError
from ferkit.core.extras import require

CPU = "CPUExecutionProvider"

_SILENT = 4  # its errors arrive as exceptions


def load_onnxruntime() -> Any:
    """Import ONNX Runtime with its telemetry off, unless ``ORT_DISABLE_TELEMETRY`` is set to something else.

    Its telemetry writes a device id into the home folder and connects to a host. The variable is read when
    the library is loaded, so ferkit imports it through this function alone.

    Raises:
        MissingDependencyError: If it is not installed or does not load.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return require("onnxruntime", "")


def open_session(
    content: bytes,
    name: str,
    *,
    fail: Callable[[str], FerkitError],
    providers: Sequence[str] | None = None,
    threads: int | None = None,
) -> Any:
    """Open a session; a provider that is not available is an error and is never replaced.

    By default it runs on the CPU with the threads of :func:`usable_cores`. ``fail`` is the class of the error
    if the model cannot be opened.

    Raises:
        FerkitError: If the model cannot be opened, or the providers are one text, which would be taken letter
            by letter.
        MissingDependencyError: If ONNX Runtime, or a provider, is not available.
    """
    onnxruntime = load_onnxruntime()
    if isinstance(providers, str):
        raise FerkitError(
            f"providers are a list of names, such as [{CPU!r}]. Received the text: {providers!r}"
        )
    wanted = list(providers or [CPU])
    here = onnxruntime.get_available_providers()
    if absent := [p for p in wanted if p not in here]:
        raise MissingDependencyError(
            f"ONNX Runtime has no {', '.join(absent)} here; it has {', '.join(here)}. "
            "A GPU needs the package onnxruntime-gpu in place of onnxruntime"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    # By default ONNX Runtime starts a thread for each core of the machine, also for cores that this process
    # may not use; the threads then wait for each other.
    options.intra_op_num_threads = threads or usable_cores()
    # Idle threads would spin for a while and occupy cores that another session, the decoder or another
    # request could use. With spinning a photo takes twice as long on two cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(content, options, providers=wanted)
    except runtime_errors() as error:
        raise fail(f"ONNX Runtime cannot open {name}: {first_line(error)}") from error
    if absent := [p for p in wanted if p not in session.get_providers()]:
        raise MissingDependencyError(
            f"ONNX Runtime has {', '.join(absent)} but cannot start it on this machine"
        )
    return session


def usable_cores(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the number of cores that this process may use, at least 1.

    They are those that it is bound to, or fewer where a control group (of a container, a service) grants it
    less of their time; a part of a core counts as one.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *_granted(groups, own)]))


def _granted(groups: Path, own: Path) -> Iterator[int]:
    """Yield how many cores each limit grants of the groups that this process is in."""
    # Inside a container its own group is the uppermost that is to be seen, and may go by another path.
    folders = {groups, groups / "cpu"}
    with contextlib.suppress(OSError):
        for line in own.read_text(errors="surrogateescape").splitlines():
            # 0::/path of version 2, 4:cpu,cpuacct:/path of version 1
            kinds, _, path = line.partition(":")[2].partition(":")
            inside = PurePosixPath(path.lstrip("/"))
            root = groups / "cpu" if "cpu" in kinds.split(",") else groups
            folders |= {root / part for part in (inside, *inside.parents)}
    for folder in folders:
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with contextlib.suppress(OSError):
                limit = " ".join((folder / name).read_text().strip() for name in names)
                # Microseconds of all cores together, and of how many; the first is no number without a limit.
                if found := re.fullmatch(r"(\d+) ([1-9]\d*)", limit):
                    yield math.ceil(int(found[1]) / int(found[2]))


def runtime_errors() -> tuple[type[Exception], ...]:
    """Return the errors that ONNX Runtime raises; they have no base class of their own."""
    state = load_onnxruntime().capi.onnxruntime_pybind11_state
    names = (
        "EPFail",
        "EngineError",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "ModelLoaded",
        "NoModel",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
    return tuple(getattr(state, name) for name in names)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; those of ONNX Runtime are long."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
