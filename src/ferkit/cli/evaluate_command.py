"""``ferkit evaluate``: measure a model on a split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    remark,
)

app = new_app()

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A model file, a run's folder, or the name of an embedded model.",
        show_default="the embedded model",
    ),
]
TtaOption = Annotated[
    str, typer.Option("--tta", help="Test-time augmentation: none, flip or ten-crop; with --data also all.")
]
LeaksOption = Annotated[
    bool,
    typer.Option(
        "--drop-leaks", help="Measure also without the faces that stand in the model's training split, too."
    ),
]
FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Write text, JSON, and pictures or photos.csv, to this folder.",
        show_default=False,
    ),
]
AnswersOption = Annotated[
    Path | None,
    typer.Option(
        "--answers", help="Write what was answered about each face to this csv.", show_default=False
    ),
]
ResultsOption = Annotated[
    Path | None,
    typer.Option("--results", help="Add to this csv, or replace in it, one row per tta.", show_default=False),
]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="With --results: replace rows of this name, whatever model or figures they tell."
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option("--name", help="What to call the model in the report and the rows.", show_default="its own"),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="Threads of ONNX Runtime; not for a run.", show_default="the usable cores"
    ),
]


PhotosOption = Annotated[
    Path | None,
    typer.Option("--photos", help="Photos in folders named by label, instead of --data.", show_default=False),
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="For --data: Training, PublicTest, PrivateTest, or all faces (all).",
        show_default="PublicTest",
    ),
]
DetectorOption = Annotated[
    str | None,
    typer.Option(
        "--detector", help="For --photos: centerface, yunet:FILE, or none.", show_default="centerface"
    ),
]
MinFaceOption = Annotated[
    float | None,
    typer.Option(
        "--min-face",
        min=5,
        help="For --photos: height in pixels of the smallest face wanted.",
        show_default="search for 48, keep what turns up",
    ),
]
TaxonomyOption = Annotated[
    str | None,
    typer.Option(
        "--taxonomy", help="For --photos: the label set.", show_default="the first that knows the folders"
    ),
]


@app.command()
def evaluate(
    model: ModelArgument = None,
    *,
    data: DataChoice = None,
    photos: PhotosOption = None,
    votes: VotesOption = None,
    split: SplitOption = None,
    tta: TtaOption = "none",
    drop_leaks: LeaksOption = False,
    drop_flat: DropFlatOption = False,
    json: JsonFileOption = None,
    out: FolderOption = None,
    answers: AnswersOption = None,
    results: ResultsOption = None,
    overwrite: OverwriteOption = False,
    name: NameOption = None,
    threads: ThreadsOption = None,
    detector: DetectorOption = None,
    min_face: MinFaceOption = None,
    taxonomy: TaxonomyOption = None,
    provider: ProviderOption = None,
) -> None:
    """Measure a model on a split, or the whole pipeline on labelled photos.

    With --photos: faces are found and read as in `ferkit predict`; accuracy, faces missed, and scores of each
    class. --detector, --min-face, --taxonomy and --provider go with it alone.

    With --data: accuracy with its 95 % Wilson interval, macro F1, precision and recall of each class,
    confusion matrix, negative log-likelihood and expected calibration error; with --votes also on the FER+
    labels, by both tta_modes. Data that name no splits are divided as for training; --split all measures all.
    """
    if (data is None) == (photos is None):
        raise typer.BadParameter("name either --data or --photos", param_hint="--data")
    if photos is not None:
        _refuse(
            {
                "--votes": votes,
                "--split": split,
                "--drop-leaks": drop_leaks,
                "--drop-flat": drop_flat,
                "--answers": answers,
                "--results": results,
                "--overwrite": overwrite,
                "--name": name,
            },
            "it goes with --data, not with --photos",
        )
        options = {
            "detector": "centerface" if detector is None else detector,
            "min_face": min_face,
            "providers": provider,
            "threads": threads,
        }
        _measure_photos(model, photos, tta, taxonomy, options, json, out)
        return
    _refuse(
        {"--detector": detector, "--min-face": min_face, "--taxonomy": taxonomy, "--provider": provider},
        "it goes with --photos, not with --data",
    )
    assert data is not None
    if results is None:
        _refuse({"--overwrite": overwrite}, "it replaces rows of --results, which is not given")
    if model is not None and Path(model).is_dir():
        _refuse(
            {"--threads": threads}, "it is for model files; a run's network takes its framework's threads"
        )
        load_keras()
    from dataclasses import replace
    from datetime import UTC, datetime

    from ferkit import __version__
    from ferkit.core import files
    from ferkit.core.crops import TTA_MODES
    from ferkit.data import load_dataset, select_faces
    from ferkit.evaluation.answers import measured_rows, recorded, write_answers
    from ferkit.evaluation.evaluate import EVERYTHING, SELECTION_SPLIT
    from ferkit.evaluation.evaluate import evaluate as measure
    from ferkit.evaluation.model import knows_data, open_model, weights_fitted_here, with_held_out
    from ferkit.evaluation.report import Report, format_report, report_as_json, write_report
    from ferkit.evaluation.results import read_results, rows_of, update_results

    if tta not in (*TTA_MODES, "all"):
        raise typer.BadParameter(f"{tta!r} is none of {', '.join(TTA_MODES)}, all", param_hint="--tta")
    if results is not None:
        # A file that is no table of results is noticed now, not after the measuring.
        read_results(results)
    subject = open_model(model, threads=threads)
    whole = load_dataset(
        data,
        votes=votes,
        size=subject.input_size,
        needed_by=subject.facts.name,
        heads=tuple(subject.heads.values()),
        tell_held_out=split != EVERYTHING,
    )
    known = knows_data(subject.facts, whole)
    if split is None:
        split = SELECTION_SPLIT
        if not whole.split_named and not known:
            remark(f"measuring what is held out as PublicTest; --split all measures all {len(whole)} faces")
    dataset = select_faces(whole, drop_flat=drop_flat)
    chosen = TTA_MODES if tta == "all" else (tta,)
    if len(chosen) > 1:
        remark(f"measuring {subject.facts.name} on {split}: {', '.join(chosen)}")
    predict, answered = recorded(subject.predict)
    evaluation = measure(
        predict,
        dataset,
        heads=subject.heads,
        split=split,
        tta_modes=chosen,
        drop_leaks=drop_leaks,
        train_splits=subject.facts.train_splits,
    )
    in_sample = weights_fitted_here(subject.facts, whole, split)
    if in_sample:
        evaluation = with_held_out(evaluation, subject.facts)
    facts = subject.facts if name is None else replace(subject.facts, name=name)
    today = datetime.now(UTC).date().isoformat()
    report = Report(facts, evaluation, today, __version__, known, whole.split_named, in_sample)
    print(format_report(report), end="")
    if json is not None:
        files.write_json(json, report_as_json(report))
    if out is not None:
        written = write_report(report, out)
        remark(f"wrote {len(written)} files to {out}")
    if answers is not None:
        rows = measured_rows(whole, split, drop_flat=drop_flat)
        write_answers(answers, whole, rows, answered, subject.heads)
        remark(f"wrote what was answered about {len(rows):,} faces to {answers}")
    if results is not None:
        update_results(results, rows_of(report), overwrite=overwrite)
        remark(f"wrote {len(chosen)} {'row' if len(chosen) == 1 else 'rows'} to {results}")


def _refuse(given: dict[str, object], why: str) -> None:
    """Raise a usage error that names those of the options that were given."""
    if foreign := [name for name, value in given.items() if value not in (None, False)]:
        raise typer.BadParameter(why, param_hint=", ".join(foreign))


def _measure_photos(
    model: str | None,
    photos: Path,
    tta: str,
    taxonomy: str | None,
    options: dict[str, Any],
    json: Path | None,
    out: Path | None,
) -> None:
    from ferkit.cli.labelled_photos import (
        find_labelled,
        format_photo_report,
        judge,
        photo_report_as_json,
        read_labelled,
        taxonomy_for,
        write_photo_report,
    )
    from ferkit.core import files
    from ferkit.core.modelfile import read_model, resolve_model
    from ferkit.recognize import Recognizer

    looks = as_tta_mode(tta)
    labelled = find_labelled(photos)
    content, info = read_model(resolve_model(model))
    chosen = taxonomy_for(info, {label for _, label in labelled}, taxonomy)
    recognizer = Recognizer(content, taxonomy=chosen.id, tta=looks, **options)
    answers = read_labelled(recognizer, labelled)
    for answer in answers:
        if answer.error:
            remark(f"error: {answer.error}")
    report = judge(recognizer, answers, source=str(photos), tta=looks)
    print(format_photo_report(report), end="")
    if json is not None:
        files.write_json(json, photo_report_as_json(report))
    if out is not None:
        write_photo_report(report, answers, chosen, out)
        remark(f"wrote 3 files to {out}")
    if report.unreadable:
        raise typer.Exit(1)
