"""``ferkit evaluate``: measure a model on labelled faces, or model and detector on labelled photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ferkit.cli.common import (
    DataChoice,
    DropFlatOption,
    JsonFileOption,
    ProviderOption,
    VotesOption,
    as_tta_mode,
    load_keras,
    new_app,
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
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A model file, a run's folder, or the name of an embedded model.",
            show_default="the embedded model",
        ),
    ] = None,
    *,
    data: DataChoice = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            "--photos", help="Photos in folders named by label, instead of --data.", show_default=False
        ),
    ] = None,
    votes: VotesOption = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            help="For --data: Training, PublicTest, PrivateTest, or all faces (all).",
            show_default="PublicTest",
        ),
    ] = None,
    tta: Annotated[
        str,
        typer.Option("--tta", help="Test-time augmentation: none, flip or ten-crop; with --data also all."),
    ] = "none",
    drop_leaks: Annotated[
        bool,
        typer.Option(
            "--drop-leaks",
            help="Measure also without the faces that have an exact duplicate in the model's training split.",
        ),
    ] = False,
    drop_flat: DropFlatOption = False,
    json: JsonFileOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Write text, JSON, and pictures or photos.csv, to this folder.",
            show_default=False,
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions", help="Write the predictions for each face to this csv.", show_default=False
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results", help="Add to this csv, or replace in it, one row per tta.", show_default=False
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="With --results: replace rows of this name, whatever their model and figures."
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the model in the report and the rows.", show_default="its own"),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            min=1,
            help="Threads of ONNX Runtime; not for a run.",
            show_default="the usable cores",
        ),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            "--detector", help="For --photos: centerface, yunet:FILE, or none.", show_default="centerface"
        ),
    ] = None,
    min_face: Annotated[
        float | None,
        typer.Option(
            "--min-face",
            min=5,
            help="For --photos: height in pixels of the smallest face to search for.",
            show_default="search for 48, keep what is found",
        ),
    ] = None,
    taxonomy: Annotated[
        str | None,
        typer.Option(
            "--taxonomy",
            help="For --photos: the label set.",
            show_default="the first that has the folders' labels",
        ),
    ] = None,
    label_map: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="FOLDER=LABEL",
            help="For --photos: the label of a folder named otherwise, or a TOML or csv file of them; may be "
            "repeated. An empty label leaves the folder out.",
            show_default=False,
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
    for_data = {
        "--votes": votes,
        "--split": split,
        "--drop-leaks": drop_leaks,
        "--drop-flat": drop_flat,
        "--predictions": predictions,
        "--results": results,
        "--overwrite": overwrite,
        "--name": name,
    }
    for_photos = {
        "--detector": detector,
        "--min-face": min_face,
        "--taxonomy": taxonomy,
        "--map": label_map,
        "--provider": provider,
    }
    if photos is not None:
        refuse_options(for_data, "it goes with --data, not with --photos")
        options = {
            "detector": detector or "centerface",
            "min_face": min_face,
            "providers": provider,
            "threads": threads,
        }
        _measure_photos(model, photos, tta, taxonomy, label_map or [], options, json, out)
        return
    assert data is not None
    refuse_options(for_photos, "it goes with --photos, not with --data")
    if results is None:
        refuse_options({"--overwrite": overwrite}, "it replaces rows of --results, which is not given")
    if model is not None and Path(model).is_dir():
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
    tta: str,
    taxonomy: str | None,
    label_map: list[str],
    options: dict[str, Any],
    json: Path | None,
    out: Path | None,
) -> None:
    from ferkit.batch.sources import find_photos
    from ferkit.core import files
    from ferkit.core.modelfile import read_model, resolve_model
    from ferkit.evaluation.photos import (
        evaluate_photos,
        fit_taxonomy,
        label_photos,
        read_label_map,
        write_photo_report,
    )
    from ferkit.recognize import Recognizer

    mode, mapped = as_tta_mode(tta), read_label_map(label_map)
    found = label_photos(photos, find_photos([str(photos)]))
    content, info = read_model(resolve_model(model))
    chosen, label_of = fit_taxonomy(info, {folder for _, folder in found}, taxonomy, mapped)
    labelled = [(name, label_of[folder]) for name, folder in found if folder in label_of]
    recognizer = Recognizer(content, taxonomy=chosen.id, tta=mode, **options)
    predictions = _predict_photos(recognizer, labelled)
    report = evaluate_photos(
        predictions,
        chosen,
        model=f"{info.name} {info.version}",
        detector=recognizer.detector.name,
        tta=mode,
        source=str(photos),
        left_out=len(found) - len(labelled),
    )
    print(report)
    if json is not None:
        files.write_json(json, report.to_dict())
    if out is not None:
        remark(f"wrote {len(write_photo_report(report, predictions, out))} files to {out}")
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
    with progress("photos", len(labelled)) as advance:
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
