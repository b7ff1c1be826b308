"""``ferkit export``: a training run as one model file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ferkit.cli.common import DataChoice, VotesOption, load_keras, new_app, option, refuse_options

if TYPE_CHECKING:
    from ferkit.data import FaceDataset

app = new_app()


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    data: DataChoice = None,
    out: Annotated[Path | None, option("--out -o", "The model file.", "RUN/model.onnx")] = None,
    votes: VotesOption = None,
    name: Annotated[str | None, option("--name", "The model's name.", "the recipe's")] = None,
    version: Annotated[str, option("--version", "The model's version.", default=True)] = "1",
    precision: Annotated[
        str,
        option(
            "--precision",
            "Of the stored weights: float32, float16, int8, or mixed (large arrays int8).",
            default=True,
        ),
    ] = "float32",
    taxonomy: Annotated[str | None, option("--taxonomy", "The default output.", "the first head")] = None,
    training_weights: Annotated[
        Path | None, option("--training-weights", "Write the weights for --init as well (Keras, float16).")
    ] = None,
    card: Annotated[Path | None, option("--card", "Write the model card as well (Markdown).")] = None,
    licence: Annotated[str | None, option("--licence", "Of the weights.", "by the data")] = None,
    cams: Annotated[
        bool, option("--cams/--no-cams", "Add class activation maps, if the network has them.", True)
    ] = True,
    average: Annotated[
        str | None,
        option("--average", "Export the mean with these weights: of --init, by run, file or name."),
    ] = None,
    share: Annotated[
        float | None, option("--share", "Of the run in that mean, between 0 and 1.", default="0.5")
    ] = None,
    notes: Annotated[str, option("--notes", "Free text for the model card.")] = "",
) -> None:
    """Write a run's network as one self-describing ONNX file.

    Temperatures are fitted and metrics measured on the run's validation split (FER2013: PublicTest). The
    file's predictions are compared with the network's; if they differ, nothing is written. Without --data,
    the data that the run was trained on are used. With --average a fine-tuned network keeps more of what it
    was before.
    """
    from ferkit.core import files
    from ferkit.core.extras import require

    if average is None:
        refuse_options({"--share": share}, "it is the run's share of a mean with the weights of --average")
    share = 0.5 if share is None else share
    load_keras()
    require("tf2onnx", "train")
    from ferkit.data import load_data
    from ferkit.evaluation.evaluate import TRAINING_SPLIT
    from ferkit.export.card import render_card
    from ferkit.export.run import export_run, write_training_weights
    from ferkit.training.average import average_runs
    from ferkit.training.runs import RunFolder, load_run, load_training_weights

    loaded, path = load_run(run), out or run / "model.onnx"
    source, recorded = (data, None) if data is not None else RunFolder(run).data_source()
    faces: str | Path | FaceDataset = source
    if average is not None:
        other, needed_by = load_training_weights(average), f"run {run}"
        faces = load_data(
            source,
            votes=votes or recorded,
            size=loaded.input_size,
            needed_by=needed_by,
            heads=loaded.taxonomies,
        )
        loaded = average_runs(loaded, other, share, faces.of_split(TRAINING_SPLIT).images)
        mean = f"Weights: the mean of the run ({share:g}) and {Path(average).name} ({1 - share:g})."
        notes = f"{notes} {mean}".strip()
    info = export_run(
        loaded,
        faces,
        path,
        votes=votes or recorded,
        name=name,
        version=version,
        precision=precision,
        default_taxonomy=taxonomy,
        cams=cams,
        licence=licence,
        notes=notes,
    )
    size = path.stat().st_size
    print(
        f"{path}: {size / 2**20:.2f} MiB, {info.parameters:,} parameters, {info.mmac:.1f} MMAC, "
        f"{info.precision} weights"
    )
    if info.parity:
        print(
            f"against the Keras network: largest difference {info.parity.largest_difference:.1e}, "
            f"same label on {100 * info.parity.same_label:.2f} %"
        )
    for head in info.taxonomies:
        print(f"{head.id}: temperature {head.temperature:.3f}")
    for row in info.metrics:
        if not row.without_leaks:
            ece = "-" if row.ece_out_of_fold is None else f"{row.ece_out_of_fold:.4f} out of fold"
            print(
                f"{row.split} {row.labels}, tta {row.tta}: {100 * row.accuracy:.2f} % "
                f"({100 * row.interval[0]:.2f}-{100 * row.interval[1]:.2f}), ECE {ece}"
            )
    if card is not None:
        files.write_text(card, render_card(info, size))
        print(f"{card}: the model card")
    if training_weights is not None:
        fitted = {head.id: info.head(head.id).temperature for head in loaded.taxonomies}
        written = write_training_weights(replace(loaded, temperatures=fitted), training_weights)
        print(f"{training_weights}: {written / 2**20:.2f} MiB, for --init")
