"""Compares ferkit with the package ``fer``, each in its own environment and process.

    python benchmarks/peer.py --make-venv                    # once: installs fer and PyTorch (5 GiB)
    python benchmarks/peer.py --photo group.jpg --out results/bench

Compares the networks on crops, and photos from the file to the result, alternately, on one core and on two.
``fer`` 25.10 does not run with the requirements it declares; :data:`REQUIREMENTS` is what it runs with.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import ASTRONAUT, CLOCK_HELP, usable
from jobs import CLOCKS
from measuring import Part, Worker, describe_machine, in_turns, workers, write_report

from ferkit.core.images import load_image

REQUIREMENTS = (
    "facenet-pytorch==2.6.0",  # MTCNN; installs PyTorch 2.2, NumPy 1.26 and Pillow 10.2
    "tensorflow-cpu==2.20.0",  # later versions need NumPy 2
    "opencv-contrib-python==4.11.0.86",  # later versions need NumPy 2; OpenCV 5 has no cascades
    "setuptools<81",  # fer imports pkg_resources
    "pandas<3",
    "matplotlib",
    "requests",
    "tqdm",
    "moviepy==1.0.3",
    "ffmpeg-python",
)
PEER = "fer==25.10.3"  # the last 25.10 and the one with a TFLite network; installed without dependencies
DEFAULT_VENV = Path("bench-out/peer-venv")
CORES = (1, 2)
BATCHES = (1, 8, 64)
MODELS = ("standard", "fast")
KINDS = ("tensorflow", "tensorflow, compiled", "tflite")
DETECTORS = {"haar": False, "mtcnn": True}


def interpreter(environment: Path) -> Path:
    """Return the path of an environment's Python."""
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def make_environment(environment: Path) -> None:
    """Create an environment and install ``fer`` into it.

    Raises:
        SystemExit: If Python is too new for PyTorch 2.2.
        subprocess.CalledProcessError: If pip fails.
    """
    if sys.version_info >= (3, 13):
        sys.exit("error: PyTorch 2.2, which fer's MTCNN needs, exists for Python 3.11 and 3.12 only")
    venv.create(environment, with_pip=True, clear=True)
    pip = [str(interpreter(environment)), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, *REQUIREMENTS], check=True)
    subprocess.run([*pip, "--no-deps", PEER], check=True)


def compare_networks(
    ours: Mapping[int, Worker], theirs: Mapping[int, Worker], rounds: int, seconds: float
) -> Part:
    """Measure faces per second of the networks by batch size and cores."""
    our_cost = {model: ours[1].call("describe", model=model)["mmac"] for model in MODELS}
    their_cost = theirs[1].call("describe")["mmac"]
    jobs: dict[str, Callable[[], float]] = {}
    for cores in ours:
        for batch in BATCHES:
            where = f"batch {batch}, {cores} core(s)"
            for model in MODELS:
                jobs[f"{where}/{model}"] = _rate(ours[cores], model=model, batch=batch, seconds=seconds)
            for kind in KINDS:
                jobs[f"{where}/{kind}"] = _rate(theirs[cores], kind=kind, batch=batch, seconds=seconds)
    rates = in_turns(jobs, rounds, warm=False)  # each job has its own warm-up
    rows = {}
    for where in dict.fromkeys(name.partition("/")[0] for name in rates):
        for model in MODELS:
            mine = rates[f"{where}/{model}"]
            row: dict[str, Any] = {"ferkit, faces/s": mine}
            row |= {f"fer, {kind}, faces/s": rates[f"{where}/{kind}"] for kind in KINDS}
            row |= {f"x {kind}": mine / rates[f"{where}/{kind}"] for kind in KINDS}
            row |= {
                f"per MMAC x {kind}": mine * our_cost[model] / (rates[f"{where}/{kind}"] * their_cost)
                for kind in KINDS
            }
            rows[f"{model}, {where}"] = row
    costs = ", ".join(f"{model} {cost:.1f}" for model, cost in our_cost.items())
    return {
        "note": f"ferkit: {costs} MMAC a face of 48 x 48 pixels, uint8 in, scaled inside. fer: "
        f"{their_cost:.1f} MMAC a face of 64 x 64 pixels, floats in; `tensorflow` and `tflite` as fer calls "
        "them, `compiled` as a TensorFlow function, which fer does not use. `x`: ferkit's rate over fer's.",
        "rows": rows,
    }


def _rate(worker: Worker, **arguments: Any) -> Callable[[], float]:
    return lambda: float(worker.call("classify", **arguments)["faces_per_s"])


def compare_photos(
    ours: Mapping[int, Worker],
    theirs: Mapping[int, Worker],
    photos: Sequence[Path],
    rounds: int,
    seconds: float,
) -> Part:
    """Measure the time from a photo's file to the expressions of its faces."""
    jobs: dict[str, Callable[[], float]] = {}
    found: dict[str, int] = {}

    def job(name: str, worker: Worker, **arguments: Any) -> None:
        def run() -> float:
            result = worker.call("photo", seconds=seconds, **arguments)
            found[name] = result["faces"]
            return float(result["seconds"])

        jobs[name] = run

    for path in photos:
        height, width = load_image(path).shape[:2]
        for cores in ours:
            where = f"{path.name} ({width} x {height}), {cores} core(s)"
            job(f"{where}/ferkit", ours[cores], path=str(path))
            for detector, mtcnn in DETECTORS.items():
                job(f"{where}/{detector}", theirs[cores], path=str(path), mtcnn=mtcnn)
    spent = in_turns(jobs, rounds, warm=False)
    rows = {}
    for where in dict.fromkeys(name.rpartition("/")[0] for name in spent):
        mine = spent[f"{where}/ferkit"]
        row: dict[str, Any] = {"ferkit, ms": 1000 * mine}
        row |= {f"fer, {name}, ms": 1000 * spent[f"{where}/{name}"] for name in DETECTORS}
        row |= {f"x {name}": spent[f"{where}/{name}"] / mine for name in DETECTORS}
        row["faces: ferkit / " + " / ".join(DETECTORS)] = " / ".join(
            str(found[f"{where}/{name}"]) for name in ("ferkit", *DETECTORS)
        )
        rows[where] = row
    return {
        "note": "Without loading; fer with its default network (TFLite). `x`: fer's time over ferkit's.",
        "rows": rows,
    }


def main() -> None:
    """Read the command line, measure, and write ``peer.json`` and the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--peer-venv", type=Path, default=DEFAULT_VENV, help="environment with fer")
    parser.add_argument("--make-venv", action="store_true", help="create that environment, measure nothing")
    parser.add_argument(
        "--photo", type=Path, action="append", default=[], help="photo beside the astronaut; repeatable"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement")
    parser.add_argument("--seconds", type=float, default=0.5, help="least duration of one measurement")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder for the results")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help=CLOCK_HELP)
    arguments = parser.parse_args()
    if arguments.make_venv:
        make_environment(arguments.peer_venv)
        return
    python = interpreter(arguments.peer_venv)
    if not python.exists():
        print(
            f"SKIPPED: no environment with fer in {arguments.peer_venv}; run `make peer` or --make-venv",
            file=sys.stderr,
        )
        return
    photos = [ASTRONAUT, *(path.absolute() for path in arguments.photo)]
    report: dict[str, Any] = {"machine": describe_machine(), "parts": {}}
    cores, clock = usable(CORES, arguments.clock), arguments.clock
    with (
        workers("worker.py", cores, clock=clock) as ours,
        workers("peer_worker.py", cores, python, clock) as theirs,
    ):
        versions = theirs[1].call("describe")["versions"]
        report["peer"] = versions
        report["notes"] = [
            "The peer: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + "."
        ]
        how = (arguments.rounds, arguments.seconds)
        print("measuring: networks", file=sys.stderr, flush=True)
        report["parts"]["The network alone"] = compare_networks(ours, theirs, *how)
        write_report(arguments.out, "peer", report, sys.argv[1:], print_tables=False)
        print("measuring: photos", file=sys.stderr, flush=True)
        report["parts"]["A photo, decode to result"] = compare_photos(ours, theirs, photos, *how)
    write_report(arguments.out, "peer", report, sys.argv[1:])


if __name__ == "__main__":
    main()
