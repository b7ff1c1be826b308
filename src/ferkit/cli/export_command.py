"""``ferkit export``: a training run as one model file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ferkit.cli.common import DataChoice, VotesOption, load_keras, new_app

app = new_app()


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    data: DataChoice = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The model file.  [default: RUN/model.onnx]")
    ] = None,
    votes: VotesOption = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The model's name.  [default: the recipe's]")
    ] = None,
    version: Annotated[str, typer.Option("--version", help="The model's version.")] = "1",
    precision: Annotated[
        str, typer.Option("--precision", help="How weights are stored: float32, float16 or int8.")
    ] = "float32",
    taxonomy: Annotated[
        str | None, typer.Option("--taxonomy", help="The head that users meet.  [default: the first]")
    ] = None,
    training_weights: Annotated[
        Path | None,
        typer.Option("--training-weights", help="Write the weights for --init as well (Keras, float16)."),
    ] = None,
    card: Annotated[
        Path | None, typer.Option("--card", help="Write the model card as well (Markdown).")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", help="Of the weights.  [default: by the data's faces]")
    ] = None,
    cams: Annotated[
        bool, typer.Option(help="Add class activation maps where the network gives them.")
    ] = True,
    notes: Annotated[str, typer.Option("--notes", help="For people; kept in the file.")] = "",
) -> None:
    """Write a run's network as one self-describing ONNX file.

    Temperatures are fitted and metrics measured on the run's validation split (FER2013: PublicTest), and the
    file's answers are compared with the network's: where they differ, nothing is written. Without --data, the
    data that the run was trained on are taken.
    """
    from ferkit.core import files
    from ferkit.core.errors import ModelFileError
    from ferkit.core.extras import require

    load_keras()
    require("tf2onnx", "train")
    from ferkit.data import load_dataset
    from ferkit.export.card import render_card
    from ferkit.export.run import export_run, write_training_weights
    from ferkit.training.runs import RunFolder, load_run

    loaded = load_run(run)
    if data is None:
        data, recorded = RunFolder(run).data_source()
        votes = votes or recorded
    target = out or run / "model.onnx"
    if target.suffix != ".onnx":
        raise ModelFileError(f"a model file ends with .onnx. Received: {target}")
    release = export_run(
        loaded,
        target,
        load_dataset(
            data, votes=votes, size=loaded.input_size, needed_by=f"run {run}", heads=loaded.taxonomies
        ),
        name=name,
        version=version,
        precision=precision,
        default_taxonomy=taxonomy,
        cams=cams,
        licence=licence,
        notes=notes,
    )
    info = release.info
    print(
        f"{release.path}: {release.bytes / 2**20:.2f} MiB, {info.parameters:,} parameters, "
        f"{info.mmac:.1f} MMAC, {info.precision} weights"
    )
    print(
        f"against the Keras network: largest difference {release.difference:.1e}, "
        f"same label on {100 * release.agreement:.2f} %"
    )
    for head in info.taxonomies:
        print(f"{head.id}: temperature {head.temperature:.3f}")
    for row in info.metrics:
        if not row["without_leaks"]:
            print(
                f"{row['split']} {row['labels']}, {row['tta']}: {100 * row['accuracy']:.2f} % "
                f"({100 * row['interval'][0]:.2f}-{100 * row['interval'][1]:.2f}), ECE "
                + ("-" if row["ece_out_of_fold"] is None else f"{row['ece_out_of_fold']:.4f} out of fold")
            )
    if card is not None:
        files.write_text(card, render_card(info, release.bytes))
        print(f"{card}: the model card")
    if training_weights is not None:
        size = write_training_weights(loaded, training_weights)
        print(f"{training_weights}: {size / 2**20:.2f} MiB, for --init")
