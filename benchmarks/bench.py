"""Measures what a user waits for: start-up, the first photo, memory, and faces per second.

What is compared is measured side by side, in turns, so that a busy machine slows all of it alike; the
ratios are what to compare between machines. Needs the base install only; what it cannot measure, it says.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from ferkit import __version__
from ferkit.errors import FerkitError
from ferkit.extras import LIBRARIES

FLOOR = "python -c pass"
STARTS: Mapping[str, Sequence[str]] = {
    FLOOR: ("-c", "pass"),
    "import ferkit": ("-c", "import ferkit"),
    "ferkit --version": ("-m", "ferkit", "--version"),
    "ferkit --help": ("-m", "ferkit", "--help"),
    "ferkit predict --help": ("-m", "ferkit", "predict", "--help"),
}
LIBRARIES_ALONE = "import numpy, cv2, onnxruntime"
BATCHES = (1, 8, 64)
THREADS = (1, 2)


def measure_process(arguments: Sequence[str]) -> tuple[float, float]:
    """Run Python with ``arguments``; return seconds of wall clock and peak memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    message = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise RuntimeError((message.strip().splitlines() or [f"exit {process.returncode}"])[-1])
    scale = 1024 if sys.platform != "darwin" else 1024 * 1024
    return seconds, usage.ru_maxrss / scale


def in_turns(jobs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Run every job once per round, in turns, after one round that does not count; return the medians."""
    seen: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            value = job()
            if turn:
                seen[name].append(value)
    return {name: statistics.median(values) for name, values in seen.items()}


def bench_start(rounds: int) -> dict[str, Any]:
    """Seconds from the shell to the prompt, against Python alone."""
    medians = in_turns({name: _timer(line) for name, line in STARTS.items()}, rounds)
    return {
        name: {"seconds": seconds, "ratio": seconds / medians[FLOOR]} for name, seconds in medians.items()
    }


def bench_predict(rounds: int) -> dict[str, Any]:
    """Seconds and peak memory of ``ferkit predict`` on one photo, against importing its libraries alone."""
    photo = str(distribution("scikit-image").locate_file("skimage/data/astronaut.png"))
    lines = {LIBRARIES_ALONE: ("-c", LIBRARIES_ALONE), "ferkit predict": ("-m", "ferkit", "predict", photo)}
    medians = in_turns({name: _timer(line) for name, line in lines.items()}, rounds)
    return {
        name: {
            "seconds": seconds,
            "ratio": seconds / medians[LIBRARIES_ALONE],
            "peak_mib": measure_process(lines[name])[1],
        }
        for name, seconds in medians.items()
    }


def bench_classifier(rounds: int) -> dict[str, Any]:
    """Faces per second of the embedded model by batch size and threads."""
    import numpy as np

    from ferkit.classifier import FaceClassifier

    jobs: dict[str, Callable[[], float]] = {}
    rng = np.random.default_rng(0)
    for threads in THREADS:
        classifier = FaceClassifier(threads=threads)
        size = classifier.info.input_size
        for batch in BATCHES:
            faces = rng.integers(0, 256, (batch, size, size), dtype=np.uint8)
            jobs[f"batch {batch}, threads {threads}"] = _rate(classifier.predict, faces)
    medians = in_turns(jobs, rounds)
    slowest = medians[f"batch {BATCHES[0]}, threads {THREADS[0]}"]
    return {name: {"faces_per_s": rate, "ratio": rate / slowest} for name, rate in medians.items()}


def describe_machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "ferkit": __version__,
        "libraries": {one.distributions[0]: one.version() for one in LIBRARIES if not one.extra},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def as_text(report: Mapping[str, Any]) -> str:
    """Return the report as a table for people."""
    machine = report["machine"]
    lines = [
        f"{machine['cpu']}, {machine['usable_cores']} of {machine['cores']} cores, load {machine['load']}; "
        f"Python {machine['python']}, ferkit {machine['ferkit']}, {machine['date']}"
    ]
    for title, rows in report["parts"].items():
        lines += ["", title]
        if "skipped" in rows:
            lines.append(f"  SKIPPED: {rows['skipped']}")
            continue
        for name, row in rows.items():
            figures = [f"{row['ratio']:6.2f} x"]
            if "seconds" in row:
                figures.insert(0, f"{row['seconds'] * 1000:8.0f} ms")
            if "faces_per_s" in row:
                figures.insert(0, f"{row['faces_per_s']:8.0f} faces/s")
            if "peak_mib" in row:
                figures.append(f"peak {row['peak_mib']:.0f} MiB")
            lines.append(f"  {name:<32} {'  '.join(figures)}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write ``bench.json`` and ``bench.txt``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder for the results")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each measurement (default: 9)")
    arguments = parser.parse_args()
    parts: dict[str, Callable[[int], dict[str, Any]]] = {
        f"Start-up (ratio to `{FLOOR}`)": bench_start,
        f"One photo, cold (ratio to `{LIBRARIES_ALONE}`)": bench_predict,
        "Embedded model (ratio to one face at a time on one thread)": bench_classifier,
    }
    report: dict[str, Any] = {"machine": describe_machine(), "rounds": arguments.rounds, "parts": {}}
    for title, part in parts.items():
        print(f"measuring: {title}", file=sys.stderr, flush=True)
        try:
            report["parts"][title] = part(arguments.rounds)
        except (FerkitError, RuntimeError, ImportError) as error:
            report["parts"][title] = {"skipped": str(error)}
    text = as_text(report)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "bench.json").write_text(json.dumps(report, indent=2) + "\n")
    (arguments.out / "bench.txt").write_text(text + "\n")
    print(text)


def _timer(line: Sequence[str]) -> Callable[[], float]:
    return lambda: measure_process(line)[0]


def _rate(predict: Callable[[Any], object], faces: Any) -> Callable[[], float]:
    # Long enough (64 faces) that the clock's grain and one late wake-up do not matter.
    calls = max(1, 64 // len(faces))

    def rate() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            predict(faces)
        return calls * len(faces) / (time.perf_counter() - start)

    return rate


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
