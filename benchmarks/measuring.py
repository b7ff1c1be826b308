"""Shared by the benchmarks: measuring processes, alternating rounds, the machine, and the report."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ferkit import __version__
from ferkit.core.extras import LIBRARIES
from ferkit.core.runtime import usable_cores

HERE = Path(__file__).resolve().parent

Part = dict[str, Any]

# On Linux a child's peak memory includes that of the process that started it. Therefore a process of a few
# MiB starts the measured one, and takes the time as well.
_LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ,
                       file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - start
peak = usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024 * 1024)
print(json.dumps([seconds, usage.ru_utime + usage.ru_stime, peak, os.waitstatus_to_exitcode(status)]))
"""


def measure_process(arguments: Sequence[str]) -> tuple[float, float, float]:
    """Run Python with ``arguments``; return wall seconds, processor seconds, and peak memory in MiB.

    Raises:
        RuntimeError: If it exits with an error; the message is its last line on stderr.
    """
    line = [sys.executable, "-I", "-S", "-c", _LAUNCHER, sys.executable, *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    seconds, processor, peak, status = json.loads(done.stdout)
    if status:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit {status}"])[-1])
    return float(seconds), float(processor), float(peak)


def in_turns(jobs: Mapping[str, Callable[[], float]], rounds: int, *, warm: bool = True) -> dict[str, float]:
    """Run every job once per round; return the median result of each.

    Args:
        jobs: Functions that return the measured value.
        rounds: Number of rounds that count.
        warm: Whether to run a warm-up round first.
    """
    seen: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + warm):
        for name, job in jobs.items():
            value = job()
            if turn or not warm:
                seen[name].append(value)
    return {name: statistics.median(values) for name, values in seen.items()}


class Worker:
    """A process that measures on its own cores; see ``jobs.py``. A context manager.

    Args:
        script: A file beside this one.
        cores: Number of cores and threads.
        python: The interpreter; by default this one.
        clock: One of ``jobs.CLOCKS``.
    """

    def __init__(self, script: str, cores: int, python: Path | None = None, clock: str = "wall") -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(cores))
        self._process = subprocess.Popen(
            [str(python or sys.executable), str(HERE / script), "--cores", str(cores), "--clock", clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **threads},
        )

    def __enter__(self) -> Self:
        """Return the worker."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()
        self._errors.close()

    def call(self, job: str, **arguments: Any) -> dict[str, Any]:
        """Run a job in the process and return its result.

        Raises:
            RuntimeError: If the job fails or the process ends.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"job": job, **arguments}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            errors = self._errors.read().strip().splitlines() or ["no message on stderr"]
            raise RuntimeError(f"the measuring process ended: {errors[-1]}")
        result: dict[str, Any] = json.loads(line)
        if "error" in result:
            raise RuntimeError(result["error"])
        return result


@contextlib.contextmanager
def workers(
    script: str, cores: Sequence[int], python: Path | None = None, clock: str = "wall"
) -> Iterator[dict[int, Worker]]:
    """Yield a worker for each number of cores."""
    with contextlib.ExitStack() as stack:
        yield {n: stack.enter_context(Worker(script, n, python, clock)) for n in cores}


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, load, system, versions and date."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "ferkit": __version__,
        "libraries": {one.distributions[0]: one.version() for one in LIBRARIES if not one.extra},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# The report

SCRIPTS = ("bench", "peer", "video", "batch")
"""Scripts that write NAME.json; the report joins these files in this order."""

_UNITS = {
    "seconds": ("ms", 1000, ",.0f"),
    "processor": ("processor ms", 1000, ",.0f"),
    "faces_per_s": ("faces/s", 1, ",.0f"),
    "frames_per_s": ("frames/s", 1, ",.1f"),
    "gmac_per_s": ("GMAC/s", 1, ",.1f"),
    "peak_mib": ("peak MiB", 1, ",.0f"),
    "ms": ("ms", 1, ",.2f"),
    "cpu_ms": ("processor ms", 1, ",.2f"),
}
_PERCENT = ("share", "recall", "same label", "accuracy", "of the matrix rate", "overlap")


def cell(name: str, value: Any) -> tuple[str, str]:
    """Return the column heading and the formatted value of a figure, by its name."""
    if isinstance(value, list):
        return name, " ".join(f"{item:.0f}" for item in value)
    if value is None or isinstance(value, str | int):
        return name, "" if value is None else f"{value:,}" if isinstance(value, int) else value
    if name in _UNITS:
        heading, factor, form = _UNITS[name]
        return heading, format(factor * value, form)
    if name in _PERCENT:
        return f"{name}, %", f"{100 * value:.1f}"
    return name, f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"


def chosen_parts(parser: argparse.ArgumentParser, text: str, known: Collection[str]) -> list[str]:
    """Return the parts that ``--parts`` names, separated by commas; end the program if one is unknown."""
    wanted = text.split(",")
    if unknown := [part for part in wanted if part not in known]:
        parser.error(f"no part {unknown[0]!r}; known are {', '.join(known)}")
    return wanted


def held_parts(folder: Path, name: str) -> dict[str, Part]:
    """Return the parts of an earlier report, each with the ``command`` and ``machine`` of its run.

    Args:
        folder: Folder of the report.
        name: One of :data:`SCRIPTS`.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return {}
    held = json.loads(path.read_text(encoding="utf-8"))
    run = {"command": held["command"], "machine": held["machine"]}
    return {title: {**run, **part} for title, part in held["parts"].items()}


def as_markdown(report: Mapping[str, Any]) -> str:
    """Return a report as Markdown tables; a part of an earlier run names that run."""
    lines = [_facts(report["machine"])]
    lines += [f"\n{note}" for note in report.get("notes", ())]
    for title, part in report["parts"].items():
        lines += ["", f"### {title}"]
        if "command" in part:
            lines += [f"From an earlier run, `{part['command']}`: {_facts(part['machine'])}", ""]
        if part.get("note"):
            lines.append(part["note"])
        if "skipped" in part:
            lines.append(f"SKIPPED: {part['skipped']}")
            continue
        rows = part["rows"]
        # Each name with one of its values, which decides the format.
        names = {name: value for row in rows.values() for name, value in row.items() if value is not None}
        heads = [cell(name, value)[0] for name, value in names.items()]
        lines += ["", f"| | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
        for label, row in rows.items():
            lines.append(f"| {label} | {' | '.join(cell(name, row.get(name))[1] for name in names)} |")
    return "\n".join(lines)


def _facts(machine: Mapping[str, Any]) -> str:
    return (
        f"{machine['cpu']}, {machine['usable_cores']} of {machine['cores']} cores, load {machine['load']} "
        f"before the run; Python {machine['python']}, ferkit {machine['ferkit']}, "
        + ", ".join(f"{name} {number}" for name, number in machine["libraries"].items())
        + f"; {machine['date']}."
    )


def write_report(
    folder: Path, name: str, report: Mapping[str, Any], command: Sequence[str], *, print_tables: bool = True
) -> None:
    """Write ``name.json``, and README.md from all reports in the folder; print the new tables.

    Args:
        folder: Folder of the report.
        name: One of :data:`SCRIPTS`.
        report: ``machine`` and ``parts``; a part has ``rows``, or the reason in ``skipped``.
        command: The arguments of the script, for repeating it.
        print_tables: Whether to print the tables; false while further parts follow.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Of absolute paths only the last part is kept.
    arguments = [Path(word).name if Path(word).is_absolute() else word for word in command]
    whole = {"command": " ".join(["python", f"benchmarks/{name}.py", *arguments]), **report}
    (folder / f"{name}.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    text = [
        "# Measurements",
        "Written by the benchmarks; do not edit. Figures are medians of alternating runs, so that other load "
        "affects all of them; compare ratios between machines, not absolute values.",
    ]
    for script in SCRIPTS:
        path = folder / f"{script}.json"
        if path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
            text += ["", f"## `{held['command']}`", as_markdown(held)]
    (folder / "README.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    if print_tables:
        print(as_markdown(report))
