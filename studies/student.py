"""Why did the student's network reach 43 %? Its recipe, and variants with one change each.

    python studies/student.py --data fer2013.csv.gz

Each variant is a normal run below --runs, trained if it is not there yet, so an interrupted study is
continued by the same command. The learning rate is constant, so a run's first six epochs are those of a
shorter run: variants of 6 and of 20 epochs are compared at epoch 6. Writes ablation.csv, .md and .png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from variants import History, Variant, draw_histories, is_finished, read_run, train_variant, write_rows

from ferkit.core import files

COMPARED = 6


_MIRROR = "augment.upside_down=0"
_NO_COPIES = "data.balance=none"
VARIANTS = (
    Variant("as-it-was", "mirror, upside down, copies of rare classes; Adam 1e-3", 20, ()),
    Variant("no-copies", "rare classes not filled up", COMPARED, (_NO_COPIES,)),
    Variant("no-upside-down", "mirror only", COMPARED, (_MIRROR,)),
    Variant("neither", "mirror only, no copies", COMPARED, (_MIRROR, _NO_COPIES)),
    Variant(
        "neither-lr-3e-4",
        "the same, learning rate 3e-4",
        COMPARED,
        (_MIRROR, _NO_COPIES, "optimizer.learning_rate=0.0003"),
    ),
    Variant(
        "neither-lr-3e-3",
        "the same, learning rate 3e-3",
        COMPARED,
        (_MIRROR, _NO_COPIES, "optimizer.learning_rate=0.003"),
    ),
    Variant(
        "neither-dense-128",
        "the same, one dense layer of 128 in place of 1024 and 4096",
        COMPARED,
        (_MIRROR, _NO_COPIES, "model.params.dense=[128]"),
    ),
    Variant(
        "as-it-was-lr-3e-3",
        "all of the student's set, learning rate 3e-3",
        COMPARED,
        ("optimizer.learning_rate=0.003",),
    ),
    Variant(
        "no-augmentation",
        "no flips, no copies",
        COMPARED,
        (_MIRROR, _NO_COPIES, "augment.mirror=0"),
    ),
)


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/student"))
    parser.add_argument("--out", type=Path, default=Path("results/student"))
    parser.add_argument("--only-finished", action="store_true", help="train nothing; tables of finished runs")
    args = parser.parse_args()
    rows = []
    histories: dict[str, History] = {}
    for variant in VARIANTS:
        folder = args.runs / variant.name
        if args.only_finished and not is_finished(variant, "seed", folder):
            continue
        train_variant(variant, "seed", args.data, folder, study="studies/student.py")
        history, facts = read_run(folder)
        histories[variant.name] = history
        row, last = history[COMPARED - 1], history[-1]
        rows.append(
            {
                "variant": variant.name,
                "what": variant.what,
                "parameters": facts["parameters"],
                "faces_per_epoch": round(row["seconds"] * row["images_per_second"]),
                "epoch": COMPARED,
                "training_accuracy": round(row["accuracy"], 4),
                "accuracy": round(row["val_accuracy"], 4),
                "loss": round(row["val_loss"], 4),
                "best_epoch_by_loss": min(history, key=lambda r: r["val_loss"])["epoch"],
                "epochs": len(history),
                "last_accuracy": round(last["val_accuracy"], 4),
                "minutes": round(sum(r["seconds"] for r in history) / 60, 1),
                "seed": facts["seed"],
            }
        )
    args.out.mkdir(parents=True, exist_ok=True)
    if not rows:
        parser.error(f"no variant below {args.runs} is finished")
    write_rows(args.out / "ablation.csv", rows)
    files.write_text(args.out / "ablation.md", _table(rows))
    draw_histories(args.out / "ablation.png", histories)
    print(_table(rows))


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"PublicTest (selection split), single view, seed 1, after epoch {COMPARED}:",
        "",
        "| variant | what | training % | PublicTest % | validation loss | lowest loss at epoch |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['variant']} | {r['what']} | {100 * r['training_accuracy']:.1f} | {100 * r['accuracy']:.1f} | "
        f"{r['loss']:.3f} | {r['best_epoch_by_loss']:.0f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
