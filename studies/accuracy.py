r"""What makes a network on FER2013 accurate? One change at a time to a short form of ``best-single``.

    python studies/accuracy.py --data fer2013.csv.gz --votes fer2013new.csv \
        --teacher ferkit-large

The short form has a seventh of the arithmetic and of the epochs, so that a variant takes minutes; it does not
show what helps only in long runs. Each variant is a normal run below --runs, trained if it is not there yet,
so an interrupted study is continued by the same command; --only trains some variants. A variant without a run
keeps its row in --out if the recipe is the same, so that several machines can share the study. The table says
how far from the seeds' mean a single run differs significantly. Writes ablation.csv, .md and .png.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats
from variants import (
    Variant,
    digest_of_teachers,
    digest_of_variant,
    epochs_done,
    is_finished,
    read_rows,
    read_run,
    train_variant,
    write_rows,
)

from ferkit.core import files

EPOCHS = 15
SHORT = (
    "model.params.stem=32",
    "model.params.filters=[32, 64, 128]",
    "model.params.blocks=[1, 1, 1]",
    "model.params.dropout=0.1",
    "mixed_precision=bfloat16",  # the same on every machine
)
SEEDS = (1, 2, 3, 4, 5, 6)


def variants(teachers: Sequence[str]) -> list[Variant]:
    """Return the variants, the recipe itself with its seeds first; the distilled ones have the teachers."""

    def one(name: str, what: str, *changes: str, epochs: int = EPOCHS, teach: bool = False) -> Variant:
        return Variant(name, what, epochs, (*SHORT, *changes), tuple(teachers) if teach else ())

    found = [
        one(f"seed-{seed}", "the recipe" if seed == 1 else f"the recipe, seed {seed}", f"seed={seed}")
        for seed in SEEDS
    ]
    found += [
        one("no-ferplus", "no second head for FER+ votes", "heads.ferplus=0"),
        one("ferplus-1", "the FER+ head weighs as much as the labels'", "heads.ferplus=1.0"),
        one("no-augmentation", "no augmentation at all", "augment=none"),
        one("mirror", "mirror only", "augment=mirror"),
        one("modern", "the preset modern: weaker, bilinear; no mixup, no erasing", "augment=modern"),
        one("bilinear", "bilinear interpolation", "augment.interpolation=bilinear"),
        one("precise", "batch normalisation of 8,192 unaugmented faces", "precise_batch_norm=8192"),
        one(
            "bilinear-precise",
            "bilinear, and batch normalisation of 8,192 unaugmented faces",
            "augment.interpolation=bilinear",
            "precise_batch_norm=8192",
        ),
        one("no-erasing", "no erased rectangles", "augment.erasing=0"),
        one("no-mixup", "no mixup", "augment.mixup=0"),
        one("cutmix", "mixup or cutmix by halves", "augment.cutmix=1.0"),
        one("no-smoothing", "no label smoothing", "label_smoothing=0"),
        one("smoothing", "twice the label smoothing", "label_smoothing=0.1"),
        one("float32", "no bfloat16", "mixed_precision=off"),
        one("no-dropout", "no dropout", "model.params.dropout=0"),
        one("no-squeeze", "no squeeze-and-excitation", "model.params.squeeze=0"),
        one("deep-stem", "a convolution at the full side before the stem's", "model.params.stem_depth=2"),
        one("deeper", "two blocks in the last two stages", "model.params.blocks=[1, 2, 2]"),
        one("wider", "half as wide again", "model.params.stem=48", "model.params.filters=[48, 96, 192]"),
        one("weights", "rare classes weighted", "data.balance=weights"),
        one(
            "adamw",
            "AdamW at 2e-3 in place of SGD",
            "optimizer.name=adamw",
            "optimizer.learning_rate=0.002",
            "optimizer.weight_decay=0.05",
        ),
        one("ema", "weights averaged over steps, decay 0.998", "optimizer.ema=0.998"),
        one(
            "progressive",
            "32, then 40 pixels for 40 and 30 % of the epochs",
            "progressive.sizes=[32, 40]",
            "progressive.until=[0.4, 0.7]",
        ),
        one(
            "progressive-longer",
            "32, then 40 pixels for 40 and 30 % of as many epochs as cost the same",
            "progressive.sizes=[32, 40]",
            "progressive.until=[0.4, 0.7]",
            epochs=round(EPOCHS / (0.4 * (32 / 48) ** 2 + 0.3 * (40 / 48) ** 2 + 0.3)),
        ),
        one("longer", "twice as many epochs", epochs=2 * EPOCHS),
    ]
    offline = ("distil.weight=0.7", "distil.tta=ten-crop")
    for temperature in (1, 2, 4):
        found.append(
            one(
                f"distilled-t{temperature}",
                f"70 % of the loss from the teachers, at temperature {temperature}",
                *offline,
                f"distil.temperature={temperature}",
                teach=True,
            )
        )
    found.append(
        one(
            "distilled-uncalibrated",
            "70 % of the loss from the teachers before calibration, at temperature 2",
            *offline,
            "distil.temperature=2",
            "distil.calibrated=false",
            teach=True,
        )
    )
    found.append(
        one(
            "distilled-only",
            "all of the loss from the teachers before calibration, at temperature 2",
            "distil.weight=1.0",
            "distil.tta=ten-crop",
            "distil.temperature=2",
            "distil.calibrated=false",
            teach=True,
        )
    )
    online = (
        "distil.tta=none",
        "distil.temperature=2",
        "distil.calibrated=false",
        "distil.online=true",
    )
    found.append(
        one(
            "distilled-online",
            "70 % of the loss from the teachers, online",
            "distil.weight=0.7",
            *online,
            teach=True,
        )
    )
    found.append(
        one(
            "distilled-online-only",
            "all of the loss from the teachers, online",
            "distil.weight=1.0",
            *online,
            teach=True,
        )
    )
    found.append(
        one(
            "distilled-longer",
            "70 % of the loss from the teachers before calibration; twice as many epochs",
            *offline,
            "distil.temperature=2",
            "distil.calibrated=false",
            epochs=2 * EPOCHS,
            teach=True,
        )
    )
    return found


def main() -> None:
    """Train what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--votes", type=Path, required=True)
    parser.add_argument(
        "--teacher",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="shipped models; without them nothing is distilled",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--out", type=Path, default=Path("results/accuracy"))
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="train these, in this order")
    parser.add_argument("--only-finished", action="store_true", help="train nothing; tables of finished runs")
    args = parser.parse_args()
    known = {variant.name: variant for variant in variants(args.teacher)}
    unknown = [name for name in args.only if name not in known]
    if unknown:
        parser.error(f"no variant {unknown[0]}; known are {', '.join(known)}")
    # Without --teacher nothing is distilled, and rows of distilled variants are kept whatever their teachers.
    distilled = {name for name, variant in known.items() if is_distilled(variant) and not args.teacher}
    if chosen := distilled.intersection(args.only):
        parser.error(f"{min(chosen)} needs a --teacher")
    wanted = args.only or [name for name in known if name not in distilled]
    digests = {name: digest_of_variant(variant, "best-single") for name, variant in known.items()}
    kept = {
        row["variant"]: row
        for row in read_rows(args.out / "ablation.csv")
        if row["recipe"] == digests.get(row["variant"])
        and row.get("faces")
        and (row["variant"] in distilled or row.get("teachers") == digest_of_teachers(known[row["variant"]]))
    }
    rows: list[dict[str, Any]] = []
    for name in [] if args.only_finished else wanted:
        if name in kept and not epochs_done(args.runs / name):
            continue
        train_variant(
            known[name],
            "best-single",
            args.data,
            args.runs / name,
            votes=args.votes,
            study="studies/accuracy.py",
        )
    for name, variant in known.items():
        if name not in distilled and is_finished(variant, "best-single", args.runs / name):
            rows.append(row_of(variant, args.runs / name, digests[name]))
        elif name in kept:
            rows.append(kept[name])
    if not rows:
        parser.error(f"no variant below {args.runs} is finished")
    if len({row["faces"] for row in rows}) > 1:
        parser.error(f"{args.runs} and {args.out} hold variants of different data; name another --out")
    args.out.mkdir(parents=True, exist_ok=True)
    absent = [name for name in known if name not in {row["variant"] for row in rows}]
    write_rows(args.out / "ablation.csv", rows)
    files.write_text(args.out / "ablation.md", table(rows, absent))
    draw(args.out / "ablation.png", rows)
    print(table(rows, absent))


def is_distilled(variant: Variant) -> bool:
    """Return whether a variant has teachers."""
    return any(change.startswith("distil.") for change in variant.changes)


def row_of(variant: Variant, folder: Path, digest: str) -> dict[str, Any]:
    """Return a finished run as a row of the table."""
    history, facts = read_run(folder)
    last = history[-1]
    return {
        "variant": variant.name,
        "what": variant.what,
        "mmac": round(facts["mmac"], 1),
        "epochs": variant.epochs,
        "training_accuracy": round(last["accuracy"], 4),
        "accuracy": round(last["val_accuracy"], 4),
        "loss": round(last["val_loss"], 4),
        "ferplus_majority": round(last["val_ferplus_accuracy"], 4) if "val_ferplus_accuracy" in last else "",
        "minutes": round(sum(row["seconds"] for row in history) / 60, 1),
        "seed": facts["seed"],
        "faces": facts["data"]["faces"][:16],
        "recipe": digest,
        "teachers": digest_of_teachers(variant),
    }


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the seeds' mean, their standard deviation, and the 95 % reach of one more run around the mean.

    The reach is ``t * s * sqrt(1 + 1/n)`` with Student's t at n - 1 degrees of freedom.
    """
    deviation = statistics.stdev(values)
    reach = stats.t.ppf(0.975, len(values) - 1) * deviation * math.sqrt(1 + 1 / len(values))
    return statistics.mean(values), deviation, float(reach)


def of_seeds(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    """Return a column of the rows of the recipe itself, one for each seed."""
    return [row[key] for row in rows if row["variant"] in {f"seed-{k}" for k in SEEDS}]


def draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw each variant's loss and accuracy, with the 95 % band of the recipe's seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order = sorted(rows, key=lambda row: -row["loss"])
    figure = Figure(figsize=(11, 1.6 + 0.26 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, 2, sharey=True)
    for panel, key, label, factor in (
        (panels[0], "loss", "PublicTest cross-entropy (left is better)", 1),
        (panels[1], "accuracy", "PublicTest accuracy in % (right is better)", 100),
    ):
        seeds = [factor * value for value in of_seeds(rows, key)]
        if len(seeds) > 1:
            mean, _, reach = spread(seeds)
            panel.axvspan(mean - reach, mean + reach, color="C7", alpha=0.2, label="95 % of single runs")
            panel.axvline(mean, color="C7", linewidth=1, label=f"mean of {len(seeds)} seeds")
            panel.legend(fontsize=8)
        colours = ["C7" if row["variant"].startswith("seed-") else "C0" for row in order]
        panel.scatter([factor * row[key] for row in order], range(len(order)), c=colours, zorder=3)
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_yticks(
        range(len(order)),
        [row["variant"] + ("" if row["epochs"] == EPOCHS else f" ({row['epochs']} epochs)") for row in order],
        fontsize=8,
    )
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def table(rows: list[dict[str, Any]], absent: Sequence[str] = ()) -> str:
    """Return the rows as Markdown, with the spread of the seeds and the variants that were not run."""
    lines = [
        "PublicTest (selection split), single view, last epoch:",
        "",
        "| variant | what | MMAC | epochs | training % | PublicTest % | FER+ majority % | loss | minutes |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        ferplus = f"{100 * r['ferplus_majority']:.1f}" if r["ferplus_majority"] != "" else ""
        lines.append(
            f"| {r['variant']} | {r['what']} | {r['mmac']:.0f} | {r['epochs']} | "
            f"{100 * r['training_accuracy']:.1f} | {100 * r['accuracy']:.1f} | {ferplus} | {r['loss']:.3f} | "
            f"{r['minutes']:.0f} |"
        )
    seeds = [100 * value for value in of_seeds(rows, "accuracy")]
    if len(seeds) > 1:
        mean, deviation, reach = spread(seeds)
        lost = spread(of_seeds(rows, "loss"))
        others = len(rows) - len(seeds)
        lines += [
            "",
            f"Over {len(seeds)} seeds: mean {mean:.2f} %, standard deviation {deviation:.2f} points; loss "
            f"{lost[0]:.3f}, {lost[1]:.3f}. One run of a variant differs significantly (95 %) from that "
            f"mean if its accuracy is {reach:.1f} points away, or its loss {lost[2]:.3f}"
            + (f"; of {others} variants without an effect, one in twenty would too." if others else "."),
        ]
    if absent:
        lines += ["", f"Not run: {', '.join(absent)}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
