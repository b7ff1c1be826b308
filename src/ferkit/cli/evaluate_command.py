"""``ferkit evaluate``: measure a model on labelled faces, or model and detector on labelled photos."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ferkit.cli.common import (
    DETECTOR_HELP,
    TTA_HELP,
    DataChoice,
    DropFlatOption,
    JsonFileOption,
    ModelOrRun,
    ProviderOption,
    RuntimeThreadsOption,
    VotesOption,
    as_tta_mode,
    load_keras,
    new_app,
    option,
    progress,
    refuse_options,
    remark,
)

if TYPE_CHECKING:
    from ferkit.evaluation.photos import PhotoPrediction
    from ferkit.recognize import Recognizer

app = new_app()


@app.command()
def evaluate(
    model: ModelOrRun = None,
    *,
    data: DataChoice = None,
    photos: Annotated[
        Path | None, option("--photos", "Photos in folders named by label, not --data.")
    ] = None,
    votes: VotesOption = None,
    split: Annotated[
        str | None, option("--split", "For --data: Training, PublicTest, PrivateTest, or all.", "PublicTest")
    ] = None,
    tta: Annotated[str, option("--tta", f"{TTA_HELP}; with --data also all.", "none")] = "none",
    drop_leaks: Annotated[
        bool, option("--drop-leaks", "Measure also without the duplicates of the model's training faces.")
    ] = False,
    drop_flat: DropFlatOption = False,
    json: JsonFileOption = None,
    out: Annotated[
        Path | None, option("--out", "Write text, JSON, and pictures or photos.csv, to this folder.")
    ] = None,
    predictions: Annotated[
        Path | None, option("--predictions", "Write the predictions for each face to this csv.")
    ] = None,
    results: Annotated[
        Path | None, option("--results", "Add to this csv, or replace in it, one row per tta.")
    ] = None,
    overwrite: Annotated[
        bool, option("--overwrite", "With --results: replace rows of this name without checks.")
    ] = False,
    name: Annotated[str | None, option("--name", "Name of the model in report and rows.", "its own")] = None,
    threads: RuntimeThreadsOption = None,
    detector: Annotated[str | None, option("--detector", f"For --photos: {DETECTOR_HELP}.", "yunet")] = None,
    min_face: Annotated[
        float | None,
        option(
            "--min-face",
            "For --photos: height in pixels of the smallest face to search for.",
            "48, keep smaller ones that are found",
            min=5,
        ),
    ] = None,
    taxonomy: Annotated[
        str | None, option("--taxonomy", "For --photos: the label set.", "the first with all labels")
    ] = None,
    label_map: Annotated[
        list[str] | None,
        option(
            "--map",
            "For --photos: the label of a folder named otherwise, or a TOML or csv file of them; may be "
            "repeated. An empty label leaves the folder out.",
            metavar="FOLDER=LABEL",
        ),
    ] = None,
    provider: ProviderOption = None,
) -> None:
    """Measure a model on a split of labelled faces, or model and detector on labelled photos.

    With --data: accuracy with its 95 % interval, mean recall, macro F1, scores of each class, confusion
    matrix, negative log-likelihood and expected calibration error; with --votes also on the FER+ labels,
    under both protocols. Data without splits are divided as for training; --split all measures all faces.

    With --photos: faces are found and recognised as in `ferkit predict`. Accuracy and mean recall with their
    95 % intervals, over all photos (a missed face counts as wrong) and over the faces found; faces missed,
    scores of each class, confusion matrix.
    """
    if (data is None) == (photos is None):
        raise typer.BadParameter("name either --data or --photos", param_hint="--data")
    for_data: dict[str, object] = {
        "--votes": votes,
        "--split": split,
        "--drop-leaks": drop_leaks,
        "--drop-flat": drop_flat,
    }
    for_data |= {"--predictions": predictions, "--results": results, "--overwrite": overwrite, "--name": name}
    for_photos: dict[str, object] = {"--detector": detector, "--min-face": min_face, "--taxonomy": taxonomy}
    for_photos |= {"--map": label_map, "--provider": provider}
    if photos is not None:
        refuse_options(for_data, "it goes with --data, not with --photos")
        options: dict[str, Any] = {"min_face": min_face, "providers": provider, "threads": threads}
        options |= {"taxonomy": taxonomy, "tta": as_tta_mode(tta), "detector": detector or "yunet"}
        _measure_photos(model, photos, label_map or [], options, json, out)
        return
    assert data is not None
    refuse_options(for_photos, "it goes with --photos, not with --data")
    if results is None:
        refuse_options({"--overwrite": overwrite}, "it replaces rows of --results, which is not given")
    if model is not None and os.path.isdir(model):  # noqa: PTH112
        refuse_options({"--threads": threads}, "it is for model files; a run uses the threads of its backend")
        load_keras()
    from ferkit.core import files
    from ferkit.core.crops import TTA_MODES
    from ferkit.evaluation.evaluate import SELECTION_SPLIT
    from ferkit.evaluation.report import evaluate as measure
    from ferkit.evaluation.results import read_results, rows_of, update_results

    modes = TTA_MODES if tta == "all" else (as_tta_mode(tta, "all"),)
    if results is not None:
        read_results(results)  # refuses another file before the measurement
    if len(modes) > 1:
        remark(f"measuring with tta {', '.join(modes)}")
    report = measure(
        model,
        data,
        votes=votes,
        split=split or SELECTION_SPLIT,
        tta=modes,
        drop_leaks=drop_leaks,
        drop_flat=drop_flat,
        name=name,
        threads=threads,
    )
    assert report.predictions is not None
    if split is None and not report.split_named and not report.known_data:
        faces = len(report.predictions.dataset)
        remark(f"measured the faces held out as PublicTest; --split all measures all {faces} faces")
    print(report)
    if json is not None:
        files.write_json(json, report.to_dict())
    if out is not None:
        remark(f"wrote {len(report.write(out))} files to {out}")
    if predictions is not None:
        report.predictions.write(predictions)
        remark(f"wrote the predictions for {len(report.predictions.rows):,} faces to {predictions}")
    if results is not None:
        update_results(results, rows_of(report), overwrite=overwrite)
        remark(f"wrote {len(modes)} {'row' if len(modes) == 1 else 'rows'} to {results}")


def _measure_photos(
    model: str | None,
    photos: Path,
    label_map: list[str],
    options: dict[str, Any],
    json: Path | None,
    out: Path | None,
) -> None:
    from ferkit.batch.sources import find_photos
    from ferkit.core import files
    from ferkit.core.modelfile import read_model, resolve_model
    from ferkit.evaluation import photos as labelled
    from ferkit.recognize import Recognizer

    mapped = labelled.read_label_map(label_map)
    found = labelled.label_photos(photos, find_photos([str(photos)]))
    content, info = read_model(resolve_model(model))
    folders = {folder for _, folder in found}
    taxonomy, label_of = labelled.fit_taxonomy(info, folders, options["taxonomy"], mapped)
    recognizer = Recognizer(content, **options | {"taxonomy": taxonomy.id})
    chosen = [(name, label_of[folder]) for name, folder in found if folder in label_of]
    predictions = _predict_photos(recognizer, chosen)
    report = labelled.evaluate_photos(
        predictions,
        taxonomy,
        model=f"{info.name} {info.version}",
        detector=recognizer.detector.name,
        tta=options["tta"],
        source=str(photos),
        left_out=len(found) - len(chosen),
    )
    print(report)
    if json is not None:
        files.write_json(json, report.to_dict())
    if out is not None:
        remark(f"wrote {len(labelled.write_photo_report(report, predictions, out))} files to {out}")
    if report.unreadable:
        raise typer.Exit(1)


def _predict_photos(recognizer: Recognizer, labelled: list[tuple[str, str]]) -> list[PhotoPrediction]:
    """Recognise labelled photos; of several faces the largest counts, and unreadable photos are reported."""
    import numpy as np

    from ferkit.evaluation.photos import PhotoPrediction
    from ferkit.recognize import Unreadable
    from ferkit.recognize.results import face_cells, face_columns

    columns = face_columns(recognizer.taxonomy.labels)
    predictions = []
    with progress("photos", lambda: len(labelled)) as advance:
        results = recognizer.predict_each(name for name, _ in labelled)
        for (name, label), result in zip(labelled, results, strict=True):
            if isinstance(result, Unreadable):
                remark(f"error: {result.error}")
                nothing = dict.fromkeys(columns)
                predictions.append(PhotoPrediction(name, label, error=str(result.error), details=nothing))
            elif not result.faces:
                predictions.append(PhotoPrediction(name, label, details=dict.fromkeys(columns)))
            else:
                largest = max(result.faces, key=lambda f: (f.box[2] - f.box[0]) * (f.box[3] - f.box[1]))
                # Not the label: it is "uncertain" below a minimum confidence.
                p = np.array(list(largest.probabilities.values()))
                details = dict(zip(columns, face_cells(largest), strict=True))
                predictions.append(PhotoPrediction(name, label, len(result.faces), p, details=details))
            advance()
    return predictions
