r"""Can a shipped model be reproduced from its recipe? All of its training with one command.

    python studies/reproduce.py ferkit-distilled --data fer2013.csv.gz --votes fer2013new.csv

Runs and prints the commands that made the model: its training runs, each from the weights of the one before,
with shipped models as teachers; the export; the evaluation. An interrupted study is continued by the same
command. Writes into runs/reproduced/MODEL, or below --runs. The figures are close to the shipped model's, not
equal: parallel sums differ in order, and some runs were started with more epochs.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ferkit.cli.common import command_line, data_options
from ferkit.training.runs import CHECKPOINT, WEIGHTS


@dataclass(frozen=True, slots=True)
class Step:
    """One training run of a model.

    Args:
        recipe: A shipped recipe or a file; its folder has its name.
        teachers: Shipped models that it distils from.
        changes: ``key=value`` for the recipe.
    """

    recipe: str
    teachers: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """How a shipped model was made.

    Args:
        steps: Its runs; each but the first starts from the weights of the one before.
        precision: Of the stored weights.
    """

    steps: tuple[Step, ...]
    precision: str = "float16"


MATCHED = ("ferkit-large", "ferkit-cutmix", "ferkit-base")
MODELS = {
    "ferkit-distilled": Model(
        (
            Step("distilled-start", ("ferkit-large", "ferkit-base", "ferkit-taught")),
            Step("distilled-matched", MATCHED, ("model.params.dropout=0",)),
            Step("distilled", MATCHED),
        )
    ),
    "ferkit-large": Model((Step("best-single"),)),
    "ferkit-cutmix": Model((Step("best-member-cutmix"), Step("best-member-finished")), precision="int8"),
    "ferkit-taught": Model((Step("best-member-taught", ("ferkit-base", "ferkit-small")),)),
    "ferkit-base": Model((Step("base"),)),
    "ferkit-small": Model((Step("small"),)),
}


def commands(
    name: str, data: str, votes: Path | None, folder: Path, *, epochs: int | None = None
) -> Iterator[list[str]]:
    """Yield the commands, without ``ferkit``, that are left to make a model.

    Args:
        name: A shipped model.
        data: As ``--data``.
        votes: As ``--votes``; None where the data has its own.
        folder: Where its runs are.
        epochs: Replaces each recipe's, for a trial.
    """
    model = MODELS[name]
    given = data_options(data, votes)
    before: Path | None = None
    for step in model.steps:
        run = folder / Path(step.recipe).stem
        if not _is_finished(run):
            yield [*_training(step, run, before, epochs), *given]
        before = run
    out = folder / f"{name}.onnx"
    kind = ["--name", name, "--precision", model.precision]
    written = ["-o", str(out), "--card", str(out.with_suffix(".md"))]
    weights = ["--training-weights", str(out.with_suffix(".weights.npz"))]
    yield ["export", str(before), *given, *kind, *written, *weights]
    yield ["evaluate", str(out), *given, "--tta", "all", "--drop-leaks", "--out", str(folder / "report")]


def _training(step: Step, run: Path, before: Path | None, epochs: int | None) -> list[str]:
    if (run / CHECKPOINT).exists():
        return ["train", "--resume", str(run)]
    words = ["distil" if step.teachers else "train", "--recipe", step.recipe, "--out", str(run)]
    for teacher in step.teachers:
        words += ["--teacher", teacher]
    if before is not None:
        words += ["--init", str(before)]
    for change in step.changes:
        words += ["--set", change]
    return words if epochs is None else [*words, "--epochs", str(epochs)]


def _is_finished(run: Path) -> bool:
    if not (run / WEIGHTS).exists():
        return False
    facts = json.loads((run / "run.json").read_text("utf-8"))
    return bool(facts.get("state") == "finished")


def call(words: Sequence[str]) -> int:
    """Run a ferkit command and return its status; on Ctrl-C it records its state first.

    Raises:
        KeyboardInterrupt: On Ctrl-C, once the command has ended.
    """
    process = subprocess.Popen([sys.executable, "-m", "ferkit", *words])
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
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("--data", required=True)
    parser.add_argument("--votes", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduced"))
    parser.add_argument("--epochs", type=int, help="of each step, for a trial; default: the recipes'")
    parser.add_argument("--dry-run", action="store_true", help="print the commands that are left")
    args = parser.parse_args()
    folder = args.runs / args.model
    for words in commands(args.model, args.data, args.votes, folder, epochs=args.epochs):
        print(command_line(["ferkit", *words]), flush=True)
        if args.dry_run:
            continue
        try:
            status = call(words)
        except KeyboardInterrupt:
            print("interrupted; the same command continues", file=sys.stderr)
            return 130
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
