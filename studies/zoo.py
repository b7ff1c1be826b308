r"""Trains every network of ferkit, and the planned ones, with one command: members, ensemble, students.

    python studies/zoo.py --data fer2013.csv.gz --votes fer2013new.csv
    python studies/zoo.py --data fer2013.csv.gz --votes fer2013new.csv --only standard

``zoo.toml`` lists them in order. Each is trained, exported with card and training weights, and evaluated, by
commands of ferkit that are printed. What is done is skipped, and so are models that are in the wheel or in
zoo/; ``--only`` trains these again, with the runs that they start from. The figures are then close to the
model's, not equal: parallel sums differ in order, and some runs were started with more epochs. An
interrupted study is continued by the same command. With ``--device gpu`` networks are trained on Keras' JAX
backend if JAX is installed, else on TensorFlow's; exports and evaluations always use TensorFlow and the CPU.
Writes runs/zoo/NAME (the run), NAME.onnx, NAME.md, NAME.weights.npz and NAME-report/.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ferkit.cli.common import command_line, data_options
from ferkit.core.errors import FerkitError
from ferkit.training.recipe import load_recipe
from ferkit.training.runs import CHECKPOINT, WEIGHTS
from ferkit.weights import find_model

LIST = Path(__file__).with_name("zoo.toml")

TRAINING = ("train", "distil")


class Entry(BaseModel):
    """A model of the list, or a run that another one starts from; ``zoo.toml`` explains the keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    recipe: str = ""
    teachers: tuple[str, ...] = ()
    init: str = ""
    set: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    precision: str = "float16"
    export: bool = True
    share: float = 1.0

    @property
    def uses(self) -> tuple[str, ...]:
        """The models and runs that it is made from."""
        return (*self.teachers, *self.members, *filter(None, [self.init]))


def read_list(path: Path) -> dict[str, Entry]:
    """Return the entries by name, in order.

    Raises:
        FerkitError: If the file cannot be read, or an entry uses what is neither above it nor installed.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
        entries = TypeAdapter(list[Entry]).validate_python(content["model"])
    except (OSError, ValueError, KeyError, ValidationError) as error:
        raise FerkitError(f"{path} is no list of models: {error}") from error
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry.name in found or bool(entry.recipe) == bool(entry.members):
            raise FerkitError(f"{path}: {entry.name} must be listed once, with a recipe or with members")
        for used in entry.uses:
            if used not in found and find_model(used) is None:
                raise FerkitError(f"{path}: {entry.name} uses {used}, which is neither above it nor a model")
        found[entry.name] = entry
    return found


def chosen_of(entries: Mapping[str, Entry], only: Sequence[str]) -> list[Entry]:
    """Return the entries to work on, in order.

    Args:
        entries: From :func:`read_list`.
        only: Names, which bring what they are made from as far as it is not installed; empty for all that are
            not installed.

    Raises:
        FerkitError: If there is no entry of a name.
    """
    if unknown := [name for name in only if name not in entries]:
        raise FerkitError(f"there is no {unknown[0]} in the list; it has {', '.join(entries)}")
    waiting = list(only) or [e.name for e in entries.values() if e.export and find_model(e.name) is None]
    wanted: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in entries and name not in wanted:
            wanted.add(name)
            waiting += [used for used in entries[name].uses if find_model(used) is None]
    return [entry for name, entry in entries.items() if name in wanted]


def commands(
    entry: Entry, data: str, votes: Path | None, folder: Path, *, epochs: int | None = None
) -> Iterator[list[str]]:
    """Yield the commands, without ``ferkit``, that are left of an entry.

    Args:
        entry: The entry.
        data: As ``--data``.
        votes: As ``--votes``; None where the data has its own.
        folder: Where runs and models are.
        epochs: Replaces the recipe's, for a trial.
    """
    given = data_options(data, votes)
    run, out = folder / entry.name, folder / f"{entry.name}.onnx"
    card = ["--name", entry.name, "--card", str(out.with_suffix(".md"))]
    if not entry.members and not _is_finished(run):
        yield [*_training(entry, folder, epochs), *given]
    if not entry.export:
        return
    if not _is_newer(out, run / WEIGHTS):
        if entry.members:
            members = [_model_file(member, folder) for member in entry.members]
            yield ["ensemble", *members, "-o", str(out), *card, *given]
        else:
            weights = ["--training-weights", str(out.with_suffix(".weights.npz"))]
            kind = ["--precision", entry.precision]
            before = entry.init if find_model(entry.init) else str(folder / entry.init)
            mean = ["--average", before, "--share", f"{entry.share:g}"] if entry.share < 1 else []
            yield ["export", str(run), "-o", str(out), *card, *kind, *weights, *mean, *given]
    report = folder / f"{entry.name}-report"
    if not _is_newer(report / "report.json", out):
        yield ["evaluate", str(out), *given, "--tta", "all", "--drop-leaks", "--out", str(report)]


def _training(entry: Entry, folder: Path, epochs: int | None) -> list[str]:
    run = folder / entry.name
    if (run / CHECKPOINT).exists():
        return ["train", "--resume", str(run)]
    words = ["distil" if entry.teachers else "train", "--recipe", entry.recipe, "--out", str(run)]
    online = bool(entry.teachers) and load_recipe(entry.recipe, entry.set).distil.online
    for teacher in entry.teachers:
        words += ["--teacher", _model_file(teacher, folder, ".weights.npz" if online else ".onnx")]
    if entry.init:
        words += ["--init", entry.init if find_model(entry.init) else str(folder / entry.init)]
    for change in entry.set:
        words += ["--set", change]
    return words if epochs is None else [*words, "--epochs", str(epochs)]


def _model_file(name: str, folder: Path, suffix: str = ".onnx") -> str:
    """Return a model as commands take it: an installed one by name, or the file that the study made."""
    return name if find_model(name) else str(folder / f"{name}{suffix}")


def _is_finished(run: Path) -> bool:
    if not (run / WEIGHTS).exists():
        return False
    facts = json.loads((run / "run.json").read_text("utf-8"))
    return bool(facts.get("state") == "finished")


def _is_newer(path: Path, source: Path) -> bool:
    """Return whether a file is there, and not older than what it is made from."""
    if not path.exists():
        return False
    return not source.exists() or path.stat().st_mtime >= source.stat().st_mtime


def gpu_backend() -> str:
    """Return Keras' backend for the GPU: JAX if it is installed, else TensorFlow, which is said in a line.

    Raises:
        FerkitError: If the backend sees no GPU.
    """
    backend = "jax" if importlib.util.find_spec("jax") else "tensorflow"
    if backend == "jax":
        script = "import jax; print('gpus', sum(d.platform != 'cpu' for d in jax.devices()))"
    else:
        print("JAX is not installed, so networks are trained on TensorFlow's GPU", file=sys.stderr)
        script = "import tensorflow as tf; print('gpus', len(tf.config.list_physical_devices('GPU')))"
    # A process of its own, so that this one does not hold the GPU's memory.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.returncode or done.stdout.split()[-2:] in ([], ["gpus", "0"]):
        raise FerkitError(f"--device gpu: {backend} sees no GPU here")
    return backend


def environment_of(command: str, backend: str | None) -> dict[str, str]:
    """Return the environment of a command.

    Args:
        command: The command's name.
        backend: Keras' backend on the GPU; None trains on the CPU.
    """
    if backend is None or command not in TRAINING:
        return os.environ | {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    return os.environ | {"KERAS_BACKEND": backend}


def call(words: Sequence[str], backend: str | None = None) -> int:
    """Run a ferkit command and return its status; on Ctrl-C it records its state first.

    Args:
        words: The command, without ``ferkit``.
        backend: As :func:`environment_of`.

    Raises:
        KeyboardInterrupt: On Ctrl-C, once the command has ended.
    """
    environment = environment_of(words[0], backend)
    process = subprocess.Popen([sys.executable, "-m", "ferkit", *words], env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        try:
            # A terminal interrupts the command as well, `kill -INT` of this process alone does not.
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
        raise


def main() -> int:
    """Run the commands; return the status of the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--votes", type=Path)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="may be repeated")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--list", type=Path, default=LIST, metavar="FILE", help="default: studies/zoo.toml")
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--epochs", type=int, help="of each run, for a trial; default: the recipes'")
    parser.add_argument("--dry-run", action="store_true", help="print the commands that are left")
    args = parser.parse_args()
    try:
        entries = read_list(args.list)
        chosen = chosen_of(entries, args.only)
        backend = gpu_backend() if args.device == "gpu" and not args.dry_run else None
        if not args.only:
            for path in filter(None, map(find_model, entries)):
                print(f"{path} is there; --only {path.stem} trains it again", file=sys.stderr)
        for entry in chosen:
            for words in commands(entry, args.data, args.votes, args.out, epochs=args.epochs):
                print(command_line(["ferkit", *words]), flush=True)
                if not args.dry_run and (status := call(words, backend)):
                    return status
    except FerkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
