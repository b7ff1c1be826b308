"""Measures what a user waits for: start-up, the first photo, a large one, memory, faces per second, stages.

What is compared is measured side by side, in turns, so that a busy machine slows all of it alike; the
ratios are what to compare between machines. Needs the base install only; what it cannot measure, it says.
``video.py`` and ``peer.py`` add their tables to the same report.
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
CLOCK_HELP = "of rates: `processor` says something on a busy machine, too, but of one core only"
SECONDS = 0.4  # of one measurement of a rate, at least
READING = ("decode", "detect", "crop", "classify")  # what a photo takes from its file to the result


def bench_start(rounds: int) -> Part:
    """Seconds from the shell to the prompt, against Python alone."""
    medians = in_turns({name: _timer(line) for name, line in STARTS.items()}, rounds)
    rows = {name: {"seconds": value, "x Python": value / medians[FLOOR]} for name, value in medians.items()}
    return {"rows": rows}


def bench_predict(rounds: int) -> Part:
    """Seconds and peak memory of ``ferkit predict`` on one photo, against importing its libraries alone."""
    photo = str(astronaut())
    lines = {LIBRARIES_ALONE: ("-c", LIBRARIES_ALONE), "ferkit predict": ("-m", "ferkit", "predict", photo)}
    rows = _processes(lines, rounds)
    for row in rows.values():
        row["x libraries"] = row["seconds"] / rows[LIBRARIES_ALONE]["seconds"]
    return {"note": "Aims: at most 1.5 s and 400 MiB.", "rows": rows}


def bench_large_photo(rounds: int) -> Part:
    """Seconds and peak memory of ``ferkit predict`` on 24 megapixels, by the faces searched for."""
    with tempfile.TemporaryDirectory() as folder:
        photo = write_large_photo(Path(folder) / "large.jpg")
        predict = ("-m", "ferkit", "predict", str(photo))
        lines = {"ferkit predict": predict, "ferkit predict --min-face 20": (*predict, "--min-face", "20")}
        rows = _processes(lines, max(1, rounds // 3))
    note = f"The astronaut, enlarged to {LARGE_SIDE} x {LARGE_SIDE} pixels, as JPEG; one process each, cold."
    return {"note": note, "rows": rows}


def write_large_photo(path: Path) -> Path:
    """Write the astronaut, enlarged to :data:`LARGE_SIDE`."""
    from PIL import Image

    with Image.open(astronaut()) as photo:
        photo.convert("RGB").resize((LARGE_SIDE, LARGE_SIDE), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def bench_classifier(rounds: int, clock: str) -> Part:
    """Faces per second of the embedded model by batch size and cores, as a share of the matrix rate."""
    with workers("worker.py", usable(CORES, clock), clock=clock) as by_cores:
        model = by_cores[1].ask("hello")
        jobs: dict[str, Callable[[], float]] = {}
        for cores, worker in by_cores.items():
            for library in model["matrices"]:
                name = f"matrices, {library}, {cores} core(s)"
                jobs[name] = _asking(worker, "gmac_per_s", "matmul", library=library, size=MATRIX)
            for batch in BATCHES:
                name = f"batch {batch}, {cores} core(s)"
                jobs[name] = _asking(worker, "faces_per_s", "classify", batch=batch)
        rates = in_turns(jobs, rounds, warm=False)  # each job warms itself up
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
        f"that of float32 products of {MATRIX} x {MATRIX}, the faster of the libraries. Aim: half of it."
    )
    return {"note": note, "rows": rows}


def bench_photo(photos: Sequence[Path], rounds: int, clock: str) -> Part:
    """Where the time of a photo goes, everything loaded before."""
    rows: dict[str, dict[str, Any]] = {}
    with workers("worker.py", usable(CORES, clock), clock=clock) as by_cores:
        for path in photos:
            for cores, worker in by_cores.items():
                answer = worker.ask("stages", path=str(path), seconds=rounds * SECONDS, least=rounds)
                spent = answer["stages"]
                rows[f"{path.name}, {cores} core(s)"] = {
                    "faces": answer["faces"],
                    "file to result, ms": 1000 * answer["whole"],
                    f"sum of {len(READING)} stages, ms": 1000 * sum(spent[name] for name in READING),
                    **{f"{name}, ms": 1000 * value for name, value in spent.items()},
                }
    note = (
        f"Medians of {rounds} turns or more, in which the whole and each stage follow each other, after one "
        f"that does not count. The sum is that of {', '.join(READING[:-1])} and {READING[-1]}, and what the "
        "whole ought to take; crop is with judging quality. Draw and encode only with --annotate."
    )
    return {"note": note, "rows": rows}


def usable(cores: Sequence[int], clock: str = "wall") -> list[int]:
    """Return those numbers of cores that this machine has; the processor's clock speaks of one only."""
    limit = 1 if clock == "processor" else describe_machine()["usable_cores"]
    return [n for n in cores if n <= limit]


def astronaut() -> Path:
    """Return the photo that a dependency brings."""
    from importlib.metadata import distribution

    return Path(str(distribution("scikit-image").locate_file("skimage/data/astronaut.png")))


def main() -> None:
    """Measure as the command line says, and write ``bench.json`` and the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder for the results")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each measurement (default: 9)")
    parser.add_argument(
        "--photo", type=Path, action="append", default=[], help="beside scikit-image's astronaut"
    )
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help=CLOCK_HELP)
    arguments = parser.parse_args()
    photos = [astronaut(), *(path.absolute() for path in arguments.photo)]
    parts: dict[str, Callable[[int], Part]] = {
        "Start-up": bench_start,
        "One photo, cold": bench_predict,
        "A photo of 24 megapixels, cold": bench_large_photo,
        "The embedded model": lambda rounds: bench_classifier(rounds, arguments.clock),
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
    """Return what Python takes for each line: seconds, in turns, and of one more run the rest."""
    medians = in_turns({name: _timer(line) for name, line in lines.items()}, rounds)
    rows: dict[str, dict[str, float]] = {}
    for name, seconds in medians.items():
        _, processor, peak = measure_process(lines[name])
        rows[name] = {"seconds": seconds, "processor": processor, "peak_mib": peak}
    return rows


def _timer(line: Sequence[str]) -> Callable[[], float]:
    return lambda: measure_process(line)[0]


def _asking(worker: Worker, key: str, do: str, **job: Any) -> Callable[[], float]:
    return lambda: float(worker.ask(do, seconds=SECONDS, **job)[key])


if __name__ == "__main__":
    main()
