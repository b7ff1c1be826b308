r"""Does an embedded model come out of its recipe again? All of its training with one command.

    python studies/reproduce.py ferkit-distilled --data fer2013.csv.gz --votes fer2013new.csv

Runs the commands that made the model one after another, each of them shown: training, from the weights of
the step before where there was one, with the embedded models as teachers; export; measurement. An interrupted
command is given again and goes on. Writes into runs/reproduced/MODEL, or below --runs. The numbers are like
the embedded model's, not the same: sums run in parallel, and some networks were begun with more epochs.
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
        teachers: Embedded models that it distils from.
        changes: ``key=value`` for the recipe.
    """

    recipe: str
    teachers: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """How an embedded model was made.

    Args:
        steps: Its runs; each but the first starts from the weights of the one before.
        precision: How its weights are stored.
        taxonomy: The head that users meet.
    """

    steps: tuple[Step, ...]
    precision: str = "float16"
    taxonomy: str = "ferplus"


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
    "ferkit-small": Model((Step("small"),), taxonomy="fer2013"),
}


def commands(
    name: str, data: str, votes: Path | None, folder: Path, *, epochs: int | None = None
) -> Iterator[list[str]]:
    """Yield the commands, without ``ferkit``, that make a model from where its folder stands.

    Args:
        name: An embedded model.
        data: As ``--data``.
        votes: As ``--votes``; None where the data has its own.
        folder: Where its runs lie.
        epochs: In place of each recipe's, for a rehearsal.
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
    kind = ["--name", name, "--precision", model.precision, "--taxonomy", model.taxonomy]
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
    """Run a ferkit command and return its status; on Ctrl-C it ends in its own way.

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
    """Run the commands; the status is that of the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("--data", required=True)
    parser.add_argument("--votes", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduced"))
    parser.add_argument("--epochs", type=int, help="of each step, for a rehearsal; default: the recipes'")
    parser.add_argument("--dry-run", action="store_true", help="show the commands that are left")
    args = parser.parse_args()
    folder = args.runs / args.model
    for words in commands(args.model, args.data, args.votes, folder, epochs=args.epochs):
        print(command_line(["ferkit", *words]), flush=True)
        if args.dry_run:
            continue
        try:
            status = call(words)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on", file=sys.stderr)
            return 130
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
