"""``ferkit data``: look at labelled faces, find what is odd about them, show them, write them anew."""

from __future__ import annotations

import sys
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
    print_json,
    remark,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ferkit.data import FaceDataset
    from ferkit.data.audit import AuditReport
    from ferkit.data.folders import Layout

app = new_app("Look at, audit, show and convert labelled faces.")

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A csv in FER2013's layout (.gz, .xz, .zip, .tar.gz), a folder of LABEL/*.png or "
        "train/LABEL/*.png, a zip or tar of one, an .npz, or cartoon[:N[:SEED]].",
        show_default=False,
    ),
]
LabelsOption = Annotated[
    str,
    typer.Option(
        "--labels",
        help="given, or from FER+ votes: ferplus-majority, ferplus-argmax, fer2013-majority, fer2013-argmax.",
    ),
]


TaxonomyOption = Annotated[
    str | None,
    typer.Option(
        "--taxonomy",
        help="The set that the labels are of: fer2013, ferplus, or own, just the names that there are.",
        show_default="by the names",
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
    """Say what a source holds: faces, labels, splits, votes, fingerprint."""
    import time

    from ferkit.data.audit import balance_of

    start = time.perf_counter()
    dataset = load_faces(source, size, votes=votes, taxonomy=taxonomy)
    seconds = time.perf_counter() - start
    balance = balance_of(dataset)
    if json:
        print_json(
            {
                "source": dataset.source,
                "faces": len(dataset),
                "size": dataset.size,
                "taxonomy": {"id": dataset.taxonomy.id, "labels": dataset.taxonomy.labels},
                "balance": balance,
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


@app.command()
def audit(
    source: SourceArgument,
    *,
    votes: VotesOption = None,
    size: SizeOption = None,
    json: JsonOption = False,
) -> None:
    """Report class balance, constant and repeated images, contradicting labels, leaks, agreement with FER+.

    With --json also the rows of each finding, counted from 1.
    """
    from ferkit.data.audit import audit_dataset

    report = audit_dataset(load_faces(source, size, votes=votes))
    if json:
        print_json(report.to_json())
    else:
        _print_audit(report)


@app.command()
def show(
    source: SourceArgument,
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The picture to write (.png, .jpg).", show_default=False)
    ],
    split: Annotated[str, typer.Option("--split", help="Training, PublicTest, PrivateTest or all.")] = "all",
    pick: Annotated[
        str, typer.Option("--pick", help="Which faces: all, flat, leaks, repeats or conflicts.")
    ] = "all",
    per_label: Annotated[int, typer.Option("--per-label", min=1, max=100, help="Faces per label.")] = 10,
    augment: Annotated[
        str | None,
        typer.Option(
            "--augment",
            help="Show also what this augmentation makes of the faces (none, student, modern, ...).",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which faces, and which randomness.")] = 0,
    cell: Annotated[int, typer.Option("--cell", min=16, max=512, help="Side of a face on the sheet.")] = 96,
    votes: VotesOption = None,
    labels: LabelsOption = "given",
    size: SizeOption = None,
) -> None:
    """Write a contact sheet: a row of faces for each label."""
    from ferkit.core.images import write_image
    from ferkit.data.audit import picked_rows
    from ferkit.data.sheet import Strip, contact_sheet, pick_faces

    dataset = load_faces(source, size, votes=votes, labels=labels)
    # repeats and leaks lie between splits, so they are looked for before one split is taken
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
            strips.append(
                Strip(f"  {augment}", _augmented(dataset.images[rows], augment, seed + len(strips)))
            )
    which = "" if pick == "all" else f", {pick}"
    sheet = contact_sheet(strips, f"{dataset.source}, {split}{which}: {len(dataset)} faces", cell=cell)
    write_image(out, sheet)
    remark(f"wrote {out}")


def _augmented(images: NDArray[np.uint8], augmentation: str, seed: int) -> NDArray[np.uint8]:
    """Return augmented copies; this alone of ``ferkit data`` needs the extra ``train``."""
    load_keras()
    from ferkit.augment import augment_preview

    return augment_preview(images, augmentation, seed)


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
        bool,
        typer.Option(
            "--crop-faces", help="The pictures are photos: find the largest face in each and cut it out."
        ),
    ] = False,
    detector: Annotated[
        str | None,
        typer.Option("--detector", help="For --crop-faces: what finds the faces.", show_default="centerface"),
    ] = None,
    votes_out: Annotated[
        Path | None,
        typer.Option(
            "--votes-out",
            help="Write the votes to this csv, row by row; only an .npz holds them itself.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Write labelled faces in another layout; nothing is written unless all of it can be read."""
    from ferkit.core.errors import DataError
    from ferkit.data import select_faces
    from ferkit.data.convert import check_target, format_of, write_dataset, write_with_votes
    from ferkit.data.load import DEFAULT_SIZE

    check_target(out, overwrite=overwrite)
    if votes_out is not None:
        if votes_out.resolve().is_relative_to(out.resolve()):
            raise typer.BadParameter(
                f"{votes_out} is, or lies in, what the faces go to", param_hint="--votes-out"
            )
        check_target(votes_out, kind="csv", overwrite=overwrite)
    if detector is not None and not crop_faces:
        raise typer.BadParameter("it goes with --crop-faces", param_hint="--detector")
    if crop_faces:
        if votes is not None:
            raise typer.BadParameter(
                "votes belong to the rows of FER2013, not to photos", param_hint="--votes"
            )
        if labels != "given" or votes_out is not None:
            raise typer.BadParameter("photos have no votes", param_hint="--labels, --votes-out")
        side = DEFAULT_SIZE if size is None else size
        cropped = _cut_faces(source, side, detector or "centerface", taxonomy)
        dataset = select_faces(cropped, drop_leaks=drop_leaks, drop_flat=drop_flat)
    else:
        dataset = load_faces(
            source,
            size,
            votes=votes,
            drop_leaks=drop_leaks,
            drop_flat=drop_flat,
            labels=labels,
            taxonomy=taxonomy,
        )
    if votes_out is None:
        write_dataset(dataset, out, overwrite=overwrite)
    elif dataset.votes is None:
        raise DataError(f"{source} has no votes to write; join them with --votes, or leave out --votes-out")
    else:
        write_with_votes(dataset, out, votes_out, overwrite=overwrite)
    remark(f"wrote {len(dataset)} faces to {out}")
    if not dataset.split_named and format_of(out) != "npz":
        remark(
            f"{out} names the faces that were held out as its PublicTest, and reports on it will call them "
            "the selection split; an .npz keeps that nobody named them"
        )
    if votes_out is not None:
        remark(f"wrote their votes to {votes_out}")
    elif dataset.votes is not None and format_of(out) != "npz":
        remark(f"{out} does not hold the votes; --votes-out writes them")


def _cut_faces(source: str, size: int, detector: str, taxonomy: str | None) -> FaceDataset:
    """Cut the largest face out of each photo; photos without one are named and left out."""
    from rich.progress import Progress

    from ferkit.core.crops import crop_faces
    from ferkit.core.errors import DataError, FerkitError
    from ferkit.core.images import load_image, to_gray
    from ferkit.data import make_dataset
    from ferkit.data.archives import list_members
    from ferkit.data.folders import describe_passed_over, gather_faces, plan_layout
    from ferkit.data.labelset import fit_labels
    from ferkit.data.load import describe_held_out
    from ferkit.detect import make_detector

    path = Path(source)
    if not path.exists():
        raise DataError(f"{path}: there is no such folder or archive of photos")
    layout: Layout = plan_layout(source, list_members(path))
    finder = make_detector(detector)
    empty: list[str] = []
    crowded = 0

    def face_of(name: str, content: bytes) -> NDArray[np.uint8] | None:
        nonlocal crowded
        try:
            photo = load_image(content)
            found = finder.detect(photo)
            if not found:
                empty.append(name)
                return None
            crowded += len(found) > 1
            largest = max(found, key=lambda face: (face.box[2] - face.box[0]) * (face.box[3] - face.box[1]))
            face: NDArray[np.uint8] = crop_faces(to_gray(photo), [largest.box], size=size)[0]
        except FerkitError as error:
            raise DataError(f"{path}: {name}: {error}") from error
        finally:
            progress.advance(task)
        return face

    with Progress(console=console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("finding faces", total=len(layout.places))
        faces = gather_faces(path, layout, face_of)
    if passed_over := describe_passed_over(source, layout.passed_over):
        remark(passed_over)
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        remark(
            f"no face in {len(empty)} of {len(layout.places)} photos, left out: {', '.join(empty[:5])}{more}"
        )
    if crowded:
        remark(f"more than one face in {crowded} of {len(layout.places)} photos; the largest was taken")
    labels, label_set, lacking = fit_labels(source, faces.labels, faces.taxonomy, taxonomy, by_name=True)
    if lacking:
        remark(lacking)
    dataset = make_dataset(
        faces.images,
        labels,
        faces.split,
        label_set,
        source=source,
        split_named=faces.split_named,
    )
    if held_out := describe_held_out(dataset):
        remark(held_out)
    return dataset


def _print_balance(balance: Any) -> None:
    """Print images per split and label, with shares."""
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
    out = console()
    out.print(f"{report.source}: {report.images} faces of {report.size} x {report.size} pixels\n")
    _print_balance(report.balance)
    out.print(f"\nconstant images: {sum(map(len, report.flat.values()))}{_by_split(report.flat, len)}")
    for split, rows in report.flat.items():
        if rows:
            out.print(f"  {split}: rows {_some(rows)}")
    out.print(f"groups of identical images: {len(report.groups)} ({report.repeated} images)")
    out.print(f"  with conflicting labels: {len(report.conflicting)}")
    out.print(f"  across splits: {len(report.crossing)}")
    for split, count in report.leaked.items():
        out.print(f"  {split} images that also stand in Training: {count}")
    out.print(f"  Training images that also stand in a test split (--drop-leaks): {report.leaking}")
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
    for tta in ("majority", "argmax"):
        kept = getattr(report.votes, tta)
        out.print(f"FER+ {tta} keeps {', '.join(f'{n} {split}' for split, n in kept.items())}")


def _by_split(found: Any, count: Any) -> str:
    """Say how many there are in each split, where there are any."""
    parts = [f"{count(rows)} {split}" for split, rows in found.items() if rows]
    return f" ({', '.join(parts)})" if parts else ""


def _some(rows: tuple[int, ...]) -> str:
    """List a few rows."""
    return ", ".join(map(str, rows[:12])) + (f" and {len(rows) - 12} more" if len(rows) > 12 else "")
