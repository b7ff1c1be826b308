"""The evaluated model: a model file or a training run behind one function, and the facts about it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ferkit.core.classifier import FaceClassifier
from ferkit.core.crops import TtaMode
from ferkit.core.errors import DataError
from ferkit.core.extras import require
from ferkit.core.modelfile import HeadInfo, Metric, ModelInfo, Provenance, resolve_model
from ferkit.core.taxonomy import Taxonomy
from ferkit.data import SPLITS, FaceDataset, faces_digest
from ferkit.evaluation.evaluate import EVERYTHING, TRAINING_SPLIT, Evaluation, Predict, Scores

if TYPE_CHECKING:
    from ferkit.training.runs import Run


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts of a model that reports state."""

    name: str  # the model's name
    version: str  # its version; empty for a run
    kind: str  # ``onnx`` or ``keras``
    architecture: str  # name in the registry, or ``ensemble``
    parameters: int  # number of parameters
    mmac: float  # multiply-accumulates for one face and one view, in millions
    size_bytes: int | None  # size of the file; None for a run
    sha256: str | None  # digest of the file, or of a run's weights; None if unknown
    members: int  # number of networks
    seeds: tuple[int, ...]  # seeds of the training runs, as far as they are known
    epochs: int | None  # epochs of the longest run; None if unknown
    hours: float | None  # hours of training, all runs together, without a teacher's; None if unknown
    # Splits that epochs, temperatures or an ensemble's weights were selected or fitted on.
    fitted_on: tuple[str, ...] = ()
    calibrated: bool = True  # whether temperatures were fitted
    # Digests of the data that it, or a member, was trained or fitted on, with votes and without.
    data: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = ()  # splits that it, or a member, was trained on, as far as they are known
    # Of an ensemble with fitted weights: the figures in its file, which hold those out of fold.
    held_out: tuple[Metric, ...] = ()
    weights_fitted_on: str = ""  # of an ensemble with fitted weights: the split that they were fitted on
    weights_data: tuple[str, ...] = ()  # and the digests of the data

    @property
    def train_splits(self) -> tuple[str, ...]:
        """The splits whose duplicates count as leaks; Training if nothing is known."""
        return self.trained_on or (TRAINING_SPLIT,)


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A model, ready to be evaluated."""

    facts: ModelFacts  # what reports state of it
    heads: Mapping[str, Taxonomy]  # its taxonomies by id
    input_size: int  # side of the faces that it takes, in pixels
    predict: Predict  # the model itself


def open_model(model: str | os.PathLike[str] | None, *, threads: int | None = None) -> EvaluatedModel:
    """Open a run's folder, a model file, or a model by name.

    Args:
        model: Folder, file, name, or None for the default model.
        threads: Threads of ONNX Runtime; a run's Keras network uses its backend's own.

    Raises:
        FerkitError: If there is none, it is damaged, or the libraries for it are not installed.
    """
    if model is not None and Path(model).is_dir():
        return open_run(Path(model))
    path = resolve_model(model)
    classifier = FaceClassifier(path, threads=threads)
    content, info = path.read_bytes(), classifier.info
    return EvaluatedModel(
        facts=facts_of(info, len(content), hashlib.sha256(content).hexdigest()),
        heads={head.id: head.taxonomy for head in info.taxonomies},
        input_size=info.input_size,
        predict=lambda crops, tta: classifier.predict(crops, tta=cast(TtaMode, tta)),
    )


def open_run(folder: Path) -> EvaluatedModel:
    """Open a finished training run: its Keras network, at the temperatures of its last export, else at 1.

    Raises:
        TrainingError: If it is none, or the run is not finished.
        MissingDependencyError: If the training framework is not installed.
    """
    from ferkit.training.inference import predict_probabilities
    from ferkit.training.runs import WEIGHTS, load_run, read_temperatures

    run = load_run(folder)
    require("keras", "train")
    network = run.network()
    temperatures = read_temperatures(folder)
    info = describe_run(run, temperatures)
    size = info.input_size

    def predict(crops: NDArray[np.uint8], tta: str) -> Mapping[str, NDArray[Any]]:
        if crops.shape[1:] != (size, size):
            raise DataError(f"run {folder} takes faces of {size} pixels. Received: {list(crops.shape)}")
        views = cast(TtaMode, tta)
        return predict_probabilities(
            network, crops, tta=views, temperatures=temperatures or None, shift=info.ten_crop_shift
        )

    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    return EvaluatedModel(
        facts=replace(facts_of(info, None, digest), kind="keras", version="", calibrated=bool(temperatures)),
        heads={head.id: head.taxonomy for head in info.taxonomies},
        input_size=size,
        predict=predict,
    )


def describe_run(run: Run, temperatures: Mapping[str, float]) -> ModelInfo:
    """Return the metadata of a run's network, with temperatures by taxonomy id (1 where absent)."""
    facts, recipe = run.facts, run.recipe
    data, machine, init, teacher = (facts.get(key) or {} for key in ("data", "machine", "init", "teacher"))
    training = Provenance.model_validate(
        {
            **data,
            **machine,
            "trained_on": data.get("train_split", ""),
            "selected_on": data.get("validation_split", ""),
            "seeds": [recipe.seed],
            "epochs": len(run.history),
            "changed": facts.get("changed", []),
            "hours": round(facts["seconds"] / 3600, 3),
            "started": facts["started"],
            "versions": facts["versions"],
            "init": {**init, "name": init["from"]} if init else None,
            "teachers": teacher or None,
        }
    )
    return ModelInfo(
        name=recipe.name,
        architecture=recipe.model.name,
        taxonomies=tuple(
            HeadInfo(id=t.id, labels=t.labels, temperature=temperatures.get(t.id, 1.0))
            for t in run.taxonomies
        ),
        default_taxonomy=run.taxonomies[0].id,
        input_size=run.input_size,
        view_size=int(recipe.model.params.get("view_size") or run.input_size),
        parameters=facts["parameters"],
        mmac=facts["mmac"],
        recipe=recipe.model_dump(mode="json"),
        training=training,
    )


def facts_of(info: ModelInfo, size_bytes: int | None = None, sha256: str | None = None) -> ModelFacts:
    """Return what reports state of a model file.

    An ensemble's seeds, epochs and hours are those of its members.
    """
    own, records = info.training, info.provenance
    networks = records[1:] or records
    hours = [record.hours for record in networks if record.hours is not None]
    return ModelFacts(
        name=info.name,
        version=info.version,
        kind="onnx",
        architecture=info.architecture,
        parameters=info.parameters,
        mmac=info.mmac,
        size_bytes=size_bytes,
        sha256=sha256,
        members=max(1, len(info.members)),
        seeds=tuple(seed for record in networks for seed in record.seeds),
        epochs=max((record.epochs for record in networks if record.epochs is not None), default=None),
        # A sum over some of the members would be too small without saying so.
        hours=sum(hours) if len(hours) == len(networks) else None,
        trained_on=_distinct(record.trained_on for record in records),
        fitted_on=_distinct(split for record in records for split in (record.selected_on, record.fitted_on)),
        data=_distinct(digest for record in records for digest in record.digests),
        held_out=tuple(row for row in info.metrics if row.fit == "weights and temperature"),
        weights_fitted_on=own.fitted_on if own.weights_fitted else "",
        weights_data=own.digests if own.weights_fitted else (),
    )


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names that are not empty, each once."""
    return tuple(dict.fromkeys(name for name in names if name))


def knows_data(facts: ModelFacts, dataset: FaceDataset) -> bool:
    """Return whether a model was trained, selected or fitted on this data set, with votes or without.

    More faces in PrivateTest do not make it another data set. A model without a record is assumed to know
    data that name their splits, so that a selection split does not pass for a test split.

    ``dataset`` is the whole data set, before faces are selected.
    """
    return _is_among(facts.data, dataset) if facts.data else dataset.split_named


def weights_fitted_here(facts: ModelFacts, dataset: FaceDataset, split: str) -> bool:
    """Return whether an ensemble's weights were fitted on (some of) the faces of this split.

    ``dataset`` is the whole data set, before faces are selected.
    """
    fitted_on = facts.weights_fitted_on
    return bool(fitted_on) and split in (fitted_on, EVERYTHING) and _is_among(facts.weights_data, dataset)


def _is_among(digests: Sequence[str], dataset: FaceDataset) -> bool:
    """Return whether one of the digests is this data set's, with or without votes and PrivateTest."""
    if dataset.fingerprint in digests or faces_digest(dataset) in digests:
        return True
    known = np.asarray(dataset.split) != SPLITS.index("PrivateTest")
    return not known.all() and faces_digest(dataset.select(known)) in digests


def metric_rows(evaluation: Evaluation) -> tuple[Metric, ...]:
    """Return the figures of an evaluation as rows for a model's metadata."""
    shared = {f.name for f in fields(Scores)} & {f.name for f in fields(Metric)}
    return tuple(
        Metric(
            split=evaluation.split,
            tta=cast(TtaMode, entry.tta),
            without_leaks=without_leaks,
            recall={c.label: c.recall for c in scores.classes},
            **{name: getattr(scores, name) for name in shared},
        )
        for entry in evaluation.tta_modes
        for without_leaks, rows in ((False, entry.scores), (True, entry.without_leaks or ()))
        for scores in rows
    )


def with_held_out(evaluation: Evaluation, facts: ModelFacts) -> Evaluation:
    """Return an evaluation whose figures out of fold are those of the model's file, None where it has none.

    It is for an ensemble whose weights were fitted on the measured faces: a temperature that is fitted again
    out of fold would leave the weights in sample.
    """
    known = {(r.split, r.tta, r.labels, r.without_leaks, r.n): r for r in facts.held_out}

    def replaced(scores: tuple[Scores, ...], tta: str, without_leaks: bool) -> tuple[Scores, ...]:
        rows = [
            known.get((evaluation.split, cast(TtaMode, tta), s.labels, without_leaks, s.n)) for s in scores
        ]
        return tuple(
            replace(
                s,
                nll_out_of_fold=row.nll_out_of_fold if row else None,
                ece_out_of_fold=row.ece_out_of_fold if row else None,
            )
            for s, row in zip(scores, rows, strict=True)
        )

    tta_modes = (
        replace(
            entry,
            scores=replaced(entry.scores, entry.tta, False),
            without_leaks=entry.without_leaks and replaced(entry.without_leaks, entry.tta, True),
        )
        for entry in evaluation.tta_modes
    )
    return replace(evaluation, tta_modes=tuple(tta_modes))
