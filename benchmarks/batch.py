"""Measures ``ferkit predict -o``: its engines beside a plain loop, and what a photo costs among few and many.

    python benchmarks/batch.py --photo group.jpg --photo portrait.jpg --counts 1000 10000

Parts that `--parts` leaves out keep their figures in the report in `--out`, with the run that measured them.
The photos are made small and linked under as many names as are needed. Rates are measured alternately, from
the first rows to the last, so the start of workers is left out. Needs the extra ``batch``, for Ray
``cluster``; the loop over the package ``fer`` needs its environment (``make peer``).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import ASTRONAUT
from measuring import (
    Part,
    Worker,
    chosen_parts,
    describe_machine,
    held_parts,
    in_turns,
    measure_process,
    write_report,
)
from peer import DEFAULT_VENV, interpreter

LOOP = "loop over Recognizer.predict"
CORES = 2
ENGINES, GROWTH = "Engines of a batch", "A photo among few and among many"
PARTS = {"engines": ENGINES, "growth": GROWTH}


def link_photos(folder: Path, photos: Sequence[Path], number: int, side: int) -> Path:
    """Make photos small, and link them under many names; return the new folder."""
    from PIL import Image

    made = folder / f"{number}"
    made.mkdir(parents=True)
    for place, path in enumerate(photos):
        with Image.open(path) as photo:
            small = photo.convert("RGB")
            small.thumbnail((side, side))
            small.save(folder / f"{number}-{place}.jpg", quality=88)
    for k in range(number):
        os.link(folder / f"{number}-{k % len(photos)}.jpg", made / f"{k:06d}.jpg")
    return made


def compare_engines(folder: Path, photos: Sequence[Path], rounds: int, peer: Path) -> Part:
    """Measure photos per second of the plain loop and of the engines with one worker and with two."""
    configurations: dict[str, dict[str, Any]] = {LOOP: {"job": "loop"}}
    for kind in ("local", *(["ray"] if find_spec("ray") else [])):
        for workers in (1, 2):
            configurations[f"{kind}, {workers} worker(s)"] = {
                **{"job": "engine", "kind": kind, "workers": workers}
            }
    processor: dict[str, float | None] = {}
    with ExitStack() as stack:
        ours = {
            kind: stack.enter_context(Worker("batch_worker.py", CORES)) for kind in ("loop", "local", "ray")
        }

        def measure(name: str, settings: dict[str, Any]) -> Callable[[], float]:
            worker = ours[settings.get("kind", "loop")]

            def run() -> float:
                result = worker.call(folder=str(folder), **settings)
                processor[name] = result.get("processor") if settings.get("kind") == "local" else None
                return float(result["photos_per_s"])

            return run

        jobs = {name: measure(name, settings) for name, settings in configurations.items()}
        if interpreter(peer).exists():
            theirs = stack.enter_context(Worker("peer_worker.py", CORES, interpreter(peer)))
            for detector, mtcnn in (("Haar", False), ("MTCNN", True)):
                jobs[f"loop over fer, {detector}"] = _rate(theirs, folder, len(photos), mtcnn)
        rates = in_turns(jobs, rounds, warm=False)
    rows = {}
    for name, rate in rates.items():
        one = rates.get(name.replace("2 worker(s)", "1 worker(s)"), rate)
        rows[name] = {
            "photos/s": rate,
            "x loop": rate / rates[LOOP],
            "x one worker": rate / one if "2 worker(s)" in name else None,
            "cpu_ms": None if processor.get(name) is None else 1000 * (processor[name] or 0.0),
        }
    note = (
        f"{CORES} cores; {len(list(folder.iterdir()))} photos. Aims: local 1.8 x one worker, Ray 1.6 x. "
        "Processor time is that of a photo, in the process of the engine."
    )
    return {"note": note, "rows": rows}


def _rate(worker: Worker, folder: Path, different: int, mtcnn: bool) -> Callable[[], float]:
    paths = sorted(map(str, folder.iterdir()))[:different]

    def run() -> float:
        spent = [worker.call("photo", path=path, mtcnn=mtcnn, seconds=0.2)["seconds"] for path in paths]
        return float(len(spent) / sum(spent))

    return run


def measure_growth(folders: dict[int, Path], outputs: Path) -> Part:
    """Measure ``ferkit predict -o`` as a whole process, among few photos and among many."""
    rows = {}
    for number, folder in folders.items():
        out = outputs / f"out-{number}"
        seconds, processor, peak = measure_process(["-m", "ferkit", "predict", str(folder), "-o", str(out)])
        rows[f"{number:,} photos"] = {
            **{"ms": 1000 * seconds / number, "cpu_ms": 1000 * processor / number, "peak_mib": peak},
            "output, bytes per photo": sum(f.stat().st_size for f in out.rglob("*.parquet")) / number,
        }
    note = "One process each, with its start; time per photo, and the peak memory of the process."
    return {"note": note, "rows": rows}


def main() -> None:
    """Read the command line, measure, and write ``batch.json`` and the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder for the results")
    parser.add_argument("--photo", type=Path, action="append", default=[], help="photo beside the astronaut")
    parser.add_argument("--side", type=int, default=320, help="longest side of the photos in pixels")
    parser.add_argument("--rates", type=int, default=400, help="photos for the rates")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the rates")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000], help="photos for the costs")
    parser.add_argument("--peer-venv", type=Path, default=DEFAULT_VENV, help="environment with fer")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure (default: %(default)s)")
    given = parser.parse_args()
    wanted = chosen_parts(parser, given.parts, PARTS)
    if find_spec("pyarrow") is None:
        sys.exit("SKIPPED: benchmarks/batch.py needs the extra batch: pip install 'ferkit[batch]'")
    photos = [ASTRONAUT, *given.photo]
    report: dict[str, Any] = {"machine": describe_machine(), "rounds": given.rounds}
    found = held_parts(given.out, "batch")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "engines" in wanted:
            rates = link_photos(folder / "rates", photos, given.rates, given.side)
            found[ENGINES] = compare_engines(rates, photos, given.rounds, given.peer_venv)
            print(json.dumps(found[ENGINES]), file=sys.stderr, flush=True)
        if "growth" in wanted:
            folders = {n: link_photos(folder / "counts", photos, n, given.side) for n in given.counts}
            found[GROWTH] = measure_growth(folders, folder)
    report["parts"] = {title: found[title] for title in PARTS.values() if title in found}
    report["machine"]["load after"] = round(os.getloadavg()[0], 2)
    write_report(given.out, "batch", report, sys.argv[1:])


if __name__ == "__main__":
    main()
