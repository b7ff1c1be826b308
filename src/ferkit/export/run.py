"""From a run's folder to a model file: temperatures fitted, answers compared, everything told in the file."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit import __version__
from ferkit.core.classifier import FaceClassifier
from ferkit.core.crops import TTA_MODES
from ferkit.core.errors import DataError, ModelFileError, TaxonomyError, TrainingError
from ferkit.core.files import write_json
from ferkit.core.modelfile import HeadInfo, ModelInfo, write_model
from ferkit.core.taxonomy import FERPLUS
from ferkit.data import faces_digest
from ferkit.data.cartoon import draw_faces
from ferkit.data.dataset import FaceDataset
from ferkit.evaluation.calibration import determined_temperature
from ferkit.evaluation.evaluate import (
    SELECTION_SPLIT,
    TRAINING_SPLIT,
    Evaluation,
    Target,
    evaluate,
    leaks_show,
    targets_for,
)
from ferkit.export.card import has_fer2013_faces
from ferkit.export.graph import has_cam, to_onnx
from ferkit.training.inference import predict_logits, predict_probabilities
from ferkit.training.runs import TEMPERATURES, Run, read_temperatures, weights_meta
from ferkit.training.state import network_arrays, write_archive

TOLERANCE = 1e-4
"""Largest difference of a probability between the Keras network and the file, with float32 weights."""

AGREEMENT, POINTS = 0.995, 0.001
"""Reduced precision: the same label on at least this share of faces, and accuracy within this of float32."""

LICENCE = "Research use only, as FER2013 itself; see LICENSE-WEIGHTS.md"


@dataclass(frozen=True, slots=True)
class Release:
    """What an export did.

    Args:
        path: The model file.
        info: What it says about itself.
        difference: Largest difference of a probability from the Keras network's.
        agreement: Share of faces with the same label as the Keras network gives.
        bytes: Size of the file.
    """

    path: Path
    info: ModelInfo
    difference: float
    agreement: float
    bytes: int


def export_run(
    run: Run,
    out: str | Path,
    dataset: FaceDataset,
    *,
    name: str | None = None,
    version: str = "1",
    precision: str = "float32",
    default_taxonomy: str | None = None,
    cams: bool = True,
    licence: str | None = None,
    notes: str = "",
) -> Release:
    """Write a run's network as a model file.

    Args:
        run: A finished run.
        out: The file, ``.onnx``.
        dataset: Holds the run's validation split (FER2013: PublicTest), on which temperatures are fitted
            (``ferplus``: on majority labels), parity is checked and metrics are measured.
        name: The model's name; by default the recipe's.
        version: The model's version.
        precision: Of the stored weights: ``float32``, ``float16`` or ``int8``.
        default_taxonomy: The head that a user meets; by default the first.
        cams: Whether class activation maps are added.
        licence: Of the weights; by default :data:`LICENCE` for FER2013's faces and for what started from
            other weights or learnt from a teacher, else "not stated by who trained it".
        notes: For people.

    Raises:
        ModelFileError: If the file's answers differ from the network's by more than is allowed; nothing
            is written then.
        DataError: If the data has no such split, or other labels than the network.
        TaxonomyError: If the network has no head ``default_taxonomy``.
        OutputError: If the file cannot be written.
    """
    default = default_taxonomy or run.taxonomies[0].id
    if default not in {t.id for t in run.taxonomies}:
        raise TaxonomyError(
            f"the run has no head {default!r}; it has {', '.join(t.id for t in run.taxonomies)}"
        )
    split = str(run.facts.get("data", {}).get("validation_split", SELECTION_SPLIT))
    trained_on = (str(run.facts.get("data", {}).get("train_split", TRAINING_SPLIT)),)
    network = run.network()
    heads = {t.id: t for t in run.taxonomies}
    _check_data(run, dataset)
    chosen = dataset.of_split(split)
    faces = np.ascontiguousarray(chosen.images)
    logits = predict_logits(network, faces)
    temperatures: dict[str, float] = {}
    for target in targets_for(chosen, heads):
        if target.taxonomy.id not in temperatures:  # majority stands before argmax
            keep = target.keep
            fitted = determined_temperature(logits[target.taxonomy.id][keep], target.labels[keep])
            temperatures[target.taxonomy.id] = round(fitted, 6)
    missing = [t for t in heads if t not in temperatures]
    if missing:
        raise TrainingError(
            f"the temperature of {missing[0]} cannot be fitted: {dataset.source} has no labels for it "
            f"in {split}" + ("; add --votes" if missing[0] == FERPLUS.id and dataset.votes is None else "")
        )
    info = ModelInfo(
        name=name or run.recipe.name,
        version=version,
        architecture=run.recipe.model.name,
        taxonomies=tuple(
            HeadInfo(
                id=t.id, labels=t.labels, temperature=temperatures[t.id], cam=cams and has_cam(network, t.id)
            )
            for t in run.taxonomies
        ),
        default_taxonomy=default,
        input_size=run.input_size,
        view_size=int(run.recipe.model.params.get("view_size") or run.input_size),
        parameters=int(run.facts["parameters"]),
        mmac=float(run.facts["mmac"]),
        recipe=run.recipe.model_dump(mode="json"),
        data={
            **run.facts["data"],
            "trained": run.facts["started"],
            "epochs": len(run.history),
            "training_hours": round(run.facts["seconds"] / 3600, 3),
            "machine": run.facts["machine"],
            "changed": run.facts.get("changed", []),
            "init": run.facts.get("init"),
            "teacher": run.facts.get("teacher"),
            "versions": run.facts["versions"],
        },
        precision=precision,
        licence=licence or _licence(run),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        ferkit_version=__version__,
        notes=notes,
    )
    graph = to_onnx(network, temperatures, cams=cams, precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "trial.onnx"
        write_model(graph, info, trial)
        classifier = FaceClassifier(trial)
        drawn = draw_faces(64, seed=7, size=run.input_size).images
        sample = np.concatenate([faces, drawn])
        expected = predict_probabilities(network, sample, temperatures=temperatures)
        answered = classifier.predict(sample)
        difference, agreement = _compare(expected, answered)
        _check(precision, difference, agreement)
        if precision != "float32":
            _check_accuracy(
                {k: v[: len(faces)] for k, v in expected.items()},
                {k: v[: len(faces)] for k, v in answered.items()},
                targets_for(chosen, heads),
            )

        def predict(crops: NDArray[np.uint8], tta: Any) -> Mapping[str, NDArray[Any]]:
            return classifier.predict(crops, tta=tta)

        measured = evaluate(
            predict,
            dataset,
            heads=heads,
            split=split,
            tta_modes=TTA_MODES,
            drop_leaks=leaks_show(dataset, split, trained_on),
            train_splits=trained_on,
        )
    parity = {"largest_difference": difference, "same_label": agreement, "faces": len(sample)}
    info = info.model_copy(
        update={"metrics": summary_rows(measured), "data": {**info.data, "parity_with_keras": parity}}
    )
    write_model(graph, info, out)
    if run.folder is not None:
        write_json(run.folder / TEMPERATURES, temperatures)
    return Release(Path(out), info, difference, agreement, Path(out).stat().st_size)


def _check_data(run: Run, dataset: FaceDataset) -> None:
    """Refuse other faces, labels or splits than the run's; votes may come or go."""
    known = run.facts["data"]
    if dataset.fingerprint == known.get("fingerprint"):
        return
    if faces_digest(dataset) not in (known.get("faces"), known.get("fingerprint")):
        raise DataError(
            f"{dataset.source} is not the data of this run ({known.get('source')}): its faces, labels or "
            "splits differ, so temperatures and figures would be those of other data"
        )


def _licence(run: Run) -> str:
    # Whose faces made a teacher or the weights to start from is not recorded; of the embedded ones FER2013's.
    if has_fer2013_faces(run.facts["data"]) or run.facts.get("init") or run.facts.get("teacher"):
        return LICENCE
    return "Not stated by who trained it"


def summary_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the measured figures as rows for a model's metadata, each with its tta."""
    rows = []
    for entry in evaluation.tta_modes:
        for without_leaks, scores in ((False, entry.scores), (True, entry.without_leaks or ())):
            rows += [
                {
                    "split": evaluation.split,
                    "selection_split": True,  # of this model at least: its temperatures are fitted there
                    "tta": entry.tta,
                    "labels": s.labels,
                    "without_leaks": without_leaks,
                    "n": s.n,
                    "accuracy": round(s.accuracy, 6),
                    "interval": [round(v, 6) for v in s.interval],
                    "macro_f1": round(s.macro_f1, 6),
                    "nll": round(s.nll, 6),
                    "ece": round(s.ece, 6),
                    "ece_out_of_fold": None if s.ece_out_of_fold is None else round(s.ece_out_of_fold, 6),
                    "recall": {c.label: None if c.recall is None else round(c.recall, 6) for c in s.classes},
                }
                for s in scores
            ]
    return rows


def _compare(
    expected: Mapping[str, NDArray[Any]], answered: Mapping[str, NDArray[Any]]
) -> tuple[float, float]:
    difference = max(float(np.abs(expected[k] - answered[k]).max()) for k in expected)
    agreement = min(float((expected[k].argmax(1) == answered[k].argmax(1)).mean()) for k in expected)
    return difference, agreement


def _check(precision: str, difference: float, agreement: float) -> None:
    if precision == "float32" and not difference <= TOLERANCE:
        raise ModelFileError(
            f"the file's probabilities differ from the Keras network's by {difference:.2e}; at most "
            f"{TOLERANCE:.0e} is allowed, so nothing was written"
        )
    if not agreement >= AGREEMENT:
        raise ModelFileError(
            f"with {precision} weights only {100 * agreement:.2f} % of the faces get the same label; at "
            f"least {100 * AGREEMENT} % must, so nothing was written"
        )


def _check_accuracy(
    expected: Mapping[str, NDArray[Any]],
    answered: Mapping[str, NDArray[Any]],
    targets: tuple[Target, ...],
) -> None:
    for target in targets:
        head, keep = target.taxonomy.id, target.keep
        before = float((expected[head].argmax(1) == target.labels)[keep].mean())
        after = float((answered[head].argmax(1) == target.labels)[keep].mean())
        if abs(before - after) > POINTS:
            raise ModelFileError(
                f"reduced precision moves {target.name} from {100 * before:.2f} to {100 * after:.2f} %; at "
                f"most {100 * POINTS} points are allowed, so nothing was written"
            )


def write_training_weights(run: Run, out: str | Path) -> int:
    """Write a run's weights as float16 for fine-tuning (``ferkit train --init``); return the bytes.

    Raises:
        OutputError: If the file cannot be written.
    """
    network = run.network()
    arrays = network_arrays(network, tuple(t.id for t in run.taxonomies))
    # Running variances may exceed float16's range and are few.
    small = {k: v.astype(np.float16) if v.size > 4096 else v for k, v in arrays.items()}
    temperatures = run.temperatures if run.folder is None else read_temperatures(run.folder)
    write_archive(out, small, weights_meta(run.recipe, run.taxonomies, run.input_size, temperatures))
    return Path(out).stat().st_size
