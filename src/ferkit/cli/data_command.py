"""``ferkit data``: inspect, audit, show and convert labelled faces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ferkit.cli.common import (
    DropFlatOption,
    DropLeaksOption,
    JsonOption,
    SizeOption,
    VotesOption,
    console,
    load_faces,
    load_keras,
    new_app,
    option,
    print_json,
    progress,
    remark,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ferkit.data import FaceDataset
    from ferkit.data.audit import AuditReport

app = new_app("Inspect, audit, show and convert labelled faces.")

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A csv in FER2013's layout (also .gz, .xz, .zip, .tar.gz), a Parquet file, a folder of "
        "LABEL/*.png or train/LABEL/*.png, a zip or tar of one, an .npz, or cartoon[:N[:SEED]].",
        show_default=False,
    ),
]
LabelsOption = Annotated[
    str,
    option(
        "--labels",
        "given, or from FER+ votes: ferplus-majority, ferplus-argmax, fer2013-majority, fer2013-argmax.",
        default=True,
    ),
]
TaxonomyOption = Annotated[
    str | None,
    option(
        "--taxonomy",
        "Convert labels to fer2013, ferplus or own (just those that there are); raf-db or affectnet "
        "for the numbers of these datasets.",
        "by their names",
    ),
]


@app.command()
def info(
    source: SourceArgument,
    *,
    votes: VotesOption = None,
    taxonomy: TaxonomyOption = None,
    size: SizeOption = None,
    json: JsonOption = False,
) -> None:
    """Show faces, labels, splits, votes and fingerprint of a source."""
    import time

    from ferkit.data.audit import balance_of
    from ferkit.data.labels import describe_untrained, labels_without_training

    start = time.perf_counter()
    dataset = load_faces(source, size, votes=votes, taxonomy=taxonomy)
    seconds = time.perf_counter() - start
    balance = balance_of(dataset)
    untrained = labels_without_training(dataset)
    if json:
        print_json(
            {
                "source": dataset.source,
                "faces": len(dataset),
                "size": dataset.size,
                "taxonomy": {"id": dataset.taxonomy.id, "labels": dataset.taxonomy.labels},
                "balance": balance,
                "labels_without_training": list(untrained),
                "votes": dataset.votes is not None,
                "fingerprint": dataset.fingerprint,
            }
        )
        return
    out = console()
    out.print(f"{dataset.source}: {len(dataset)} faces of {dataset.size} x {dataset.size} pixels")
    out.print(
        f"labels of {dataset.taxonomy.id!r}; {'with' if dataset.votes is not None else 'no'} FER+ votes"
    )
    out.print(f"fingerprint {dataset.fingerprint}")
    out.print(f"loaded in {seconds:.2f} s\n")
    _print_balance(balance)
    if untrained:
        out.print(f"\nwarning: {describe_untrained(untrained)}")


@app.command()
def audit(
    source: SourceArgument,
    *,
    votes: VotesOption = None,
    size: SizeOption = None,
    json: JsonOption = False,
) -> None:
    """Report class balance, duplicates, leaks and conflicting labels.

    Also constant images, and agreement with FER+ votes. --json adds the rows of each finding, counted from 1.
    """
    from ferkit.data.audit import audit_dataset

    report = audit_dataset(load_faces(source, size, votes=votes, skip_unreadable=True))
    if json:
        print_json(report.to_json())
    else:
        _print_audit(report)


@app.command()
def show(
    source: SourceArgument,
    *,
    out: Annotated[Path, option("--out -o", "The picture to write (.png, .jpg).")],
    split: Annotated[
        str, option("--split", "Training, PublicTest, PrivateTest or all.", default=True)
    ] = "all",
    pick: Annotated[
        str, option("--pick", "Which faces: all, flat, leaks, repeats or conflicts.", default=True)
    ] = "all",
    per_label: Annotated[int, option("--per-label", "Faces per label.", default=True, min=1, max=100)] = 10,
    augment: Annotated[
        str | None,
        option("--augment", "Also show augmented copies of the faces (none, student, modern, ...)."),
    ] = None,
    seed: Annotated[
        int, option("--seed", "Seed of the choice of faces and of the augmentation.", default=True, min=0)
    ] = 0,
    cell: Annotated[
        int, option("--cell", "Side of a face on the sheet.", default=True, min=16, max=512)
    ] = 96,
    votes: VotesOption = None,
    labels: LabelsOption = "given",
    size: SizeOption = None,
) -> None:
    """Write a contact sheet with a row of faces per label."""
    from ferkit.core.images import write_image
    from ferkit.data.audit import picked_rows
    from ferkit.data.sheet import Strip, contact_sheet, pick_faces

    dataset = load_faces(source, size, votes=votes, labels=labels)
    # Duplicates are searched across splits, before one split is selected.
    dataset = dataset.select(picked_rows(dataset, pick))
    if split != "all":
        dataset = dataset.of_split(split)
    strips = []
    chosen = pick_faces(dataset, per_label, seed)
    for name, rows in zip(dataset.taxonomy.labels, chosen, strict=True):
        if not len(rows) and pick != "all":
            continue
        strips.append(Strip(name, dataset.images[rows]))
        if augment is not None and len(rows):
            load_keras()
            from ferkit.augment import augment_preview

            copies = augment_preview(dataset.images[rows], augment, seed + len(strips))
            strips.append(Strip(f"  {augment}", copies))
    which = "" if pick == "all" else f", {pick}"
    sheet = contact_sheet(strips, f"{dataset.source}, {split}{which}: {len(dataset)} faces", cell=cell)
    write_image(out, sheet)
    remark(f"wrote {out}")


@app.command()
def convert(
    source: SourceArgument,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="NAME.csv or NAME.csv.gz (FER2013's layout), NAME.npz, or else a folder of PNG files.",
            show_default=False,
        ),
    ],
    *,
    votes: VotesOption = None,
    labels: LabelsOption = "given",
    taxonomy: TaxonomyOption = None,
    drop_leaks: DropLeaksOption = False,
    drop_flat: DropFlatOption = False,
    size: SizeOption = None,
    crop_faces: Annotated[
        bool, option("--crop-faces", "The pictures are photos: detect and crop the largest face of each.")
    ] = False,
    detector: Annotated[
        str | None, option("--detector", "Face detector of --crop-faces.", "as `ferkit predict`")
    ] = None,
    votes_out: Annotated[
        Path | None,
        option(
            "--votes-out", "Write the votes to this csv, row by row; of the formats, only .npz includes them."
        ),
    ] = None,
    overwrite: Annotated[bool, option("--overwrite", "Replace files that exist.")] = False,
) -> None:
    """Write labelled faces in another format.

    Nothing is written unless all of them can be read.
    """
    from ferkit.data.convert import check_target, format_of, write_dataset

    check_target(out, overwrite=overwrite)
    if votes_out is not None:
        if votes_out.resolve().is_relative_to(out.resolve()):
            raise typer.BadParameter(
                f"{votes_out} is the output {out} or inside it", param_hint="--votes-out"
            )
        check_target(votes_out, kind="csv", overwrite=overwrite)
    if detector is not None and not crop_faces:
        raise typer.BadParameter("it needs --crop-faces", param_hint="--detector")
    if crop_faces and (votes is not None or labels != "given" or votes_out is not None):
        raise typer.BadParameter("photos have no FER+ votes", param_hint="--votes, --labels, --votes-out")
    options: dict[str, Any] = {
        "votes": votes,
        "labels": labels,
        "taxonomy": taxonomy,
        "drop_leaks": drop_leaks,
        "drop_flat": drop_flat,
    }
    if crop_faces:
        dataset = _load_photos(source, size, detector, options)
    else:
        dataset = load_faces(source, size, **options)
    write_dataset(dataset, out, votes=votes_out, overwrite=overwrite)
    remark(f"wrote {len(dataset)} faces to {out}")
    if votes_out is not None:
        remark(f"wrote their votes to {votes_out}")
    if format_of(out) != "npz":
        if not dataset.split_named:
            remark(f"{out} names the held-out faces PublicTest; an .npz records that they were held out")
        if dataset.votes is not None and votes_out is None:
            remark(f"{out} does not hold the votes; --votes-out writes them")


def _load_photos(source: str, size: int | None, detector: str | None, options: dict[str, Any]) -> FaceDataset:
    """Crop the largest face of each photo; photos without one are left out."""
    from ferkit.core.crops import FER2013_CROPS, crop_faces, fit_crop
    from ferkit.core.images import to_gray
    from ferkit.data import check_source
    from ferkit.data.load import DEFAULT_SIZE
    from ferkit.detect import make_detector
    from ferkit.detect.whole import WholePicture

    check_source(source)
    finder = make_detector(detector) if detector else make_detector()
    geometry = FER2013_CROPS.get(finder.name)
    photos = crowded = 0

    def crop(photo: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        nonlocal photos, crowded
        advance()
        photos += 1
        if isinstance(finder, WholePicture):
            return fit_crop(to_gray(photo), size or DEFAULT_SIZE)
        found = finder.detect(photo)
        if not found:
            return None
        crowded += len(found) > 1
        largest = max(found, key=lambda face: (face.box[2] - face.box[0]) * (face.box[3] - face.box[1]))
        face: NDArray[np.uint8] = crop_faces(
            to_gray(photo), [largest.box], geometry=geometry, size=size or DEFAULT_SIZE
        )[0]
        return face

    with progress("photos") as advance:
        dataset = load_faces(source, size, crop=crop, **options)
    if crowded:
        remark(f"{crowded} of {photos} photos show several faces; the largest was taken")
    return dataset


def _print_balance(balance: Any) -> None:
    """Print the images per split and label with their shares."""
    from rich.table import Table

    table = Table("label", box=None, pad_edge=False)
    for split in balance:
        table.add_column(split, justify="right")
        table.add_column("%", justify="right")
    for label in next(iter(balance.values()), {}):
        cells = []
        for counts in balance.values():
            cells += [str(counts[label]), f"{100 * counts[label] / max(1, sum(counts.values())):.1f}"]
        table.add_row(label, *cells)
    totals = [cell for counts in balance.values() for cell in (str(sum(counts.values())), "")]
    table.add_row("all", *totals)
    console().print(table)


def _print_audit(report: AuditReport) -> None:
    """Print an audit as text."""
    from ferkit.data.archives import name_some
    from ferkit.data.labels import describe_untrained

    out = console()
    out.print(f"{report.source}: {report.images} faces of {report.size} x {report.size} pixels\n")
    _print_balance(report.balance)
    if report.untrained:
        out.print(f"\nwarning: {describe_untrained(report.untrained)}")
    if report.unreadable:
        names = name_some(report.unreadable)
        out.print(f"\nwarning: {len(report.unreadable)} pictures cannot be read and are left out: {names}")
    out.print(f"\nconstant images: {sum(map(len, report.flat.values()))}")
    for split, rows in report.flat.items():
        if rows:
            out.print(f"  {len(rows)} in {split}: rows {name_some(rows)}")
    out.print(f"groups of identical images: {len(report.groups)} ({report.repeated} images)")
    out.print(f"  with conflicting labels: {len(report.conflicting)}")
    out.print(f"  across splits: {len(report.crossing)}")
    for split, count in report.leaked.items():
        out.print(f"  {split} images with a duplicate in Training: {count}")
    out.print(f"  Training images with a duplicate in a test split (--drop-leaks): {report.leaking}")
    for group in report.conflicting[:3]:
        members = zip(group.rows, group.splits, group.labels, strict=True)
        out.print("  for example " + "; ".join(f"row {r} {split} {label}" for r, split, label in members))
    if report.votes is None or report.votes.agreement is None:
        out.print("\nno FER+ votes to compare FER2013 labels with (--votes)")
        return
    out.print(f"\nlabels that equal the leading FER+ vote: {report.votes.agreement:.1%}")
    for label, share in report.votes.by_label.items():
        if share is not None:
            out.print(f"  {label:<9} {share:6.1%}")
    for protocol, kept in (("majority", report.votes.majority), ("argmax", report.votes.argmax)):
        out.print(f"FER+ {protocol} keeps {', '.join(f'{n} {split}' for split, n in kept.items())}")
