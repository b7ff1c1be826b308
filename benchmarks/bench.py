"""Measures start-up, the first photo, a large photo, memory, faces per second, and the stages of a photo.

Measurements that are compared alternate, so that other load affects all of them; compare the ratios between
machines. Needs the base install only; the report names what could not be measured. ``video.py`` and
``peer.py`` add their tables to the same report.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import CLOCKS
from measuring import Part, Worker, describe_machine, in_turns, measure_process, workers, write_report

from ferkit.core.errors import FerkitError

ASTRONAUT = Path(__file__).parents[1] / "examples" / "astronaut.jpg"
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
CORES = (1, 2)
MATRIX = 1024  # rows and columns
LARGE_SIDE = 4900  # pixels: 24 million together
CLOCK_HELP = "clock for rates: `processor` is usable on a busy machine, but measures one core only"
SECONDS = 0.4  # least duration of one measurement of a rate
READING = ("decode", "detect", "crop", "classify")  # the stages from the file to the result


def bench_start(rounds: int) -> Part:
    """Measure the seconds of short commands, relative to Python alone."""
    medians = in_turns({name: _timer(line) for name, line in STARTS.items()}, rounds)
    rows = {name: {"seconds": value, "x Python": value / medians[FLOOR]} for name, value in medians.items()}
    return {"rows": rows}


def bench_predict(rounds: int) -> Part:
    """Measure seconds and peak memory of ``ferkit predict``, relative to importing its libraries."""
    photo = str(ASTRONAUT)
    lines = {LIBRARIES_ALONE: ("-c", LIBRARIES_ALONE), "ferkit predict": ("-m", "ferkit", "predict", photo)}
    rows = _processes(lines, rounds)
    for row in rows.values():
        row["x libraries"] = row["seconds"] / rows[LIBRARIES_ALONE]["seconds"]
    return {"note": "Aims: at most 1.5 s and 400 MiB.", "rows": rows}


def bench_large_photo(rounds: int) -> Part:
    """Measure seconds and peak memory of ``ferkit predict`` on 24 megapixels, by ``--min-face``."""
    with tempfile.TemporaryDirectory() as folder:
        photo = write_large_photo(Path(folder) / "large.jpg")
        predict = ("-m", "ferkit", "predict", str(photo))
        lines = {"ferkit predict": predict, "ferkit predict --min-face 20": (*predict, "--min-face", "20")}
        rows = _processes(lines, max(1, rounds // 3))
    note = f"The astronaut, enlarged to {LARGE_SIDE} x {LARGE_SIDE} pixels, as JPEG; one process each, cold."
    return {"note": note, "rows": rows}


def write_large_photo(path: Path) -> Path:
    """Write the astronaut, enlarged to :data:`LARGE_SIDE`, and return the path."""
    from PIL import Image

    with Image.open(ASTRONAUT) as photo:
        photo.convert("RGB").resize((LARGE_SIDE, LARGE_SIDE), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def bench_classifier(rounds: int, clock: str) -> Part:
    """Measure faces per second of the default model, and its share of the matrix rate, by batch and cores."""
    with workers("worker.py", usable(CORES, clock), clock=clock) as by_cores:
        model = by_cores[1].call("describe")
        jobs: dict[str, Callable[[], float]] = {}
        for cores, worker in by_cores.items():
            for library in model["matrices"]:
                name = f"matrices, {library}, {cores} core(s)"
                jobs[name] = _measurement(worker, "gmac_per_s", "matmul", library=library, size=MATRIX)
            for batch in BATCHES:
                name = f"batch {batch}, {cores} core(s)"
                jobs[name] = _measurement(worker, "faces_per_s", "classify", batch=batch)
        rates = in_turns(jobs, rounds, warm=False)  # each job has its own warm-up
    rows: dict[str, dict[str, Any]] = {}
    for cores in by_cores:
        matrices = {library: rates[f"matrices, {library}, {cores} core(s)"] for library in model["matrices"]}
        for library, rate in matrices.items():
            rows[f"matrices, {library}, {cores} core(s)"] = {"gmac_per_s": rate}
        for batch in BATCHES:
            name = f"batch {batch}, {cores} core(s)"
            gmac = rates[name] * model["mmac"] / 1000
            rows[name] = {
                "faces_per_s": rates[name],
                "gmac_per_s": gmac,
                "of the matrix rate": gmac / max(matrices.values()),
                "x one face, one core": rates[name] / rates[f"batch {BATCHES[0]}, {CORES[0]} core(s)"],
            }
    note = (
        f"{model['model']}: {model['architecture']}, {model['mmac']:.1f} MMAC a face. The matrix rate is "
        f"the rate of float32 products of {MATRIX} x {MATRIX} in the faster library. Aim: half of it."
    )
    return {"note": note, "rows": rows}


def bench_photo(photos: Sequence[Path], rounds: int, clock: str) -> Part:
    """Measure the stages of a photo after everything is loaded."""
    rows: dict[str, dict[str, Any]] = {}
    with workers("worker.py", usable(CORES, clock), clock=clock) as by_cores:
        for path in photos:
            for cores, worker in by_cores.items():
                result = worker.call("stages", path=str(path), seconds=rounds * SECONDS, least=rounds)
                spent = result["stages"]
                rows[f"{path.name}, {cores} core(s)"] = {
                    "faces": result["faces"],
                    "file to result, ms": 1000 * result["whole"],
                    f"sum of {len(READING)} stages, ms": 1000 * sum(spent[name] for name in READING),
                    **{f"{name}, ms": 1000 * value for name, value in spent.items()},
                }
    note = (
        f"Medians of at least {rounds} rounds after a warm-up; each round runs the whole and every stage. "
        f"The sum of {', '.join(READING[:-1])} and {READING[-1]} should equal the whole. Crop includes the "
        "quality measures. Draw and encode are needed for --annotate only."
    )
    return {"note": note, "rows": rows}


def usable(cores: Sequence[int], clock: str = "wall") -> list[int]:
    """Return the numbers of cores that this machine has; only 1 for the processor clock."""
    limit = 1 if clock == "processor" else describe_machine()["usable_cores"]
    return [n for n in cores if n <= limit]


def main() -> None:
    """Read the command line, measure, and write ``bench.json`` and the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder for the results")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each measurement (default: 9)")
    parser.add_argument(
        "--photo", type=Path, action="append", default=[], help="photo beside the astronaut; repeatable"
    )
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help=CLOCK_HELP)
    arguments = parser.parse_args()
    photos = [ASTRONAUT, *(path.absolute() for path in arguments.photo)]
    parts: dict[str, Callable[[int], Part]] = {
        "Start-up": bench_start,
        "One photo, cold": bench_predict,
        "A photo of 24 megapixels, cold": bench_large_photo,
        "The default model": lambda rounds: bench_classifier(rounds, arguments.clock),
        "Where the time of a photo goes": lambda rounds: bench_photo(photos, rounds, arguments.clock),
    }
    report: dict[str, Any] = {"machine": describe_machine(), "rounds": arguments.rounds, "parts": {}}
    for title, part in parts.items():
        print(f"measuring: {title}", file=sys.stderr, flush=True)
        try:
            report["parts"][title] = part(arguments.rounds)
        except (FerkitError, RuntimeError, ImportError) as error:
            report["parts"][title] = {"skipped": str(error)}
    write_report(arguments.out, "bench", report, sys.argv[1:])


def _processes(lines: Mapping[str, Sequence[str]], rounds: int) -> dict[str, dict[str, float]]:
    """Return, per command line, the median seconds and the processor time and memory of one more run."""
    medians = in_turns({name: _timer(line) for name, line in lines.items()}, rounds)
    rows: dict[str, dict[str, float]] = {}
    for name, seconds in medians.items():
        _, processor, peak = measure_process(lines[name])
        rows[name] = {"seconds": seconds, "processor": processor, "peak_mib": peak}
    return rows


def _timer(line: Sequence[str]) -> Callable[[], float]:
    return lambda: measure_process(line)[0]


def _measurement(worker: Worker, key: str, job: str, **arguments: Any) -> Callable[[], float]:
    return lambda: float(worker.call(job, seconds=SECONDS, **arguments)[key])


if __name__ == "__main__":
    main()
