"""What is measured: a model file or a training run, behind one function that answers with probabilities."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ferkit.core.classifier import FaceClassifier
from ferkit.core.crops import TtaMode
from ferkit.core.errors import DataError
from ferkit.core.extras import require
from ferkit.core.modelfile import ModelInfo, resolve_model
from ferkit.core.taxonomy import Taxonomy
from ferkit.data import SPLITS, FaceDataset, faces_digest
from ferkit.evaluation.evaluate import EVERYTHING, TRAINING_SPLIT, Evaluation, Predict, Scores

_CHOSEN_ON = ("validation_split", "fitted_on")
"""Keys of a model's ``data`` that name splits on which something about it was chosen."""

_WEIGHTS_FITTED = "weights"
"""How ``fit`` of a row of an ensemble's ``metrics`` begins where weights were fitted."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Figures of a vote on faces that its weights and temperature were not fitted to, from its file.

    Args:
        split: The split that the vote was fitted on.
        tta: Name of the test-time augmentation.
        labels: As in :attr:`Scores.labels`.
        without_leaks: Whether faces that also stand in the training split were left out.
        n: Number of faces.
        accuracy: In 0..1.
        interval: 95 % Wilson interval of the accuracy.
        nll: In nats.
        ece: In 0..1.
    """

    split: str
    tta: str
    labels: str
    without_leaks: bool
    n: int
    accuracy: float
    interval: tuple[float, float]
    nll: float
    ece: float


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a report says of the model.

    Args:
        name: The model's name.
        version: Its version, empty for a run.
        kind: ``onnx`` or ``keras``.
        architecture: Name in the registry, or ``ensemble``.
        parameters: Trained numbers.
        mmac: Multiply-accumulates for one face and one view, in millions.
        size_bytes: Size of the file; None for a run.
        sha256: Digest of the file, or of a run's last weights; None where it is not known.
        members: Number of networks in it.
        seeds: Seeds of the training runs behind it, as far as they are known.
        epochs: Epochs of the longest of them; None if unknown.
        hours: Hours of training, all runs together, without a teacher's; None if unknown.
        fitted_on: Splits that its epochs, temperatures or weights of a vote were chosen or fitted on.
        calibrated: Whether temperatures were fitted.
        data: Fingerprints of the data that it, or a member, was trained or fitted on, with votes and without.
        trained_on: Splits whose faces it, or a member, was trained on, as far as they are known.
        held_out: Of an ensemble with fitted weights: what its file tells of faces that the fit had not seen.
        weights_fitted: Where weights of a vote, or of one inside it, were fitted: of each fit the split and
            the fingerprints of its data.
    """

    name: str
    version: str
    kind: str
    architecture: str
    parameters: int
    mmac: float
    size_bytes: int | None
    sha256: str | None
    members: int
    seeds: tuple[int, ...]
    epochs: int | None
    hours: float | None
    fitted_on: tuple[str, ...] = ()
    calibrated: bool = True
    data: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = ()
    held_out: tuple[HeldOut, ...] = ()
    weights_fitted: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def train_splits(self) -> tuple[str, ...]:
        """The splits that leaks are counted against: where nothing is known, Training."""
        return self.trained_on or (TRAINING_SPLIT,)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, ready to be measured.

    Args:
        facts: What a report says of it.
        heads: The taxonomies that it answers in.
        input_size: Side of the faces that it takes, in pixels.
        predict: The model itself.
    """

    facts: ModelFacts
    heads: Mapping[str, Taxonomy]
    input_size: int
    predict: Predict


def open_subject(model: str | os.PathLike[str] | None, *, threads: int | None = None) -> Subject:
    """Open what is to be measured: a run's folder, a model file, or an embedded model by name.

    Args:
        model: Folder, file, name, or None for the embedded default.
        threads: Threads of ONNX Runtime; a run's Keras network uses its backend's own.

    Raises:
        FerkitError: If there is none, it is damaged, or the libraries for it are not installed.
    """
    if model is not None and Path(model).is_dir():
        return open_run(Path(model))
    return open_model_file(model, threads=threads)


def open_run(folder: Path) -> Subject:
    """Open a finished training run: its Keras network, at the temperatures of its last export, else at 1.

    Args:
        folder: The run's folder.

    Raises:
        TrainingError: If it is none, or the run is not finished.
        MissingDependencyError: If the training framework is not installed.
    """
    from ferkit.training.inference import predict_probabilities
    from ferkit.training.runs import TEMPERATURES, WEIGHTS, load_run, read_json

    run = load_run(folder)
    require("keras", "train")
    network = run.network()
    size = run.input_size
    told = folder / TEMPERATURES
    temperatures = read_json(told) if told.exists() else None
    # The same rule as ModelInfo.ten_crop_shift, so that the exported file gives the same figures.
    shift = (size - int(run.recipe.model.params.get("view_size") or size)) // 2 or 2

    def predict(crops: NDArray[np.uint8], tta: str) -> Mapping[str, NDArray[Any]]:
        if crops.shape[1:] != (size, size):
            raise DataError(f"run {folder} takes faces of {size} pixels. Received: {list(crops.shape)}")
        return predict_probabilities(
            network, crops, tta=cast(TtaMode, tta), temperatures=temperatures, shift=shift
        )

    return Subject(
        facts=ModelFacts(
            name=run.recipe.name,
            version="",
            kind="keras",
            architecture=run.recipe.model.name,
            parameters=int(run.facts["parameters"]),
            mmac=float(run.facts["mmac"]),
            size_bytes=None,
            sha256=hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
            members=1,
            seeds=(run.recipe.seed,),
            epochs=len(run.history),
            hours=float(run.facts["seconds"]) / 3600,
            fitted_on=_splits([run.facts.get("data", {})], *_CHOSEN_ON),
            calibrated=temperatures is not None,
            data=_fingerprints(run.facts.get("data", {})),
            trained_on=_splits([run.facts.get("data", {})], "train_split"),
        ),
        heads={taxonomy.id: taxonomy for taxonomy in run.taxonomies},
        input_size=size,
        predict=predict,
    )


def open_model_file(model: str | os.PathLike[str] | None, *, threads: int | None = None) -> Subject:
    """Open a model file, or an embedded model by name.

    Args:
        model: Name, file, or None for the embedded default.
        threads: Threads of ONNX Runtime.

    Raises:
        ModelFileError: If there is none, or it is damaged.
    """
    path = resolve_model(model)
    classifier = FaceClassifier(path, threads=threads)
    content = path.read_bytes()
    info = classifier.info

    def predict(crops: NDArray[np.uint8], tta: str) -> Mapping[str, NDArray[Any]]:
        return classifier.predict(crops, tta=cast(TtaMode, tta))

    return Subject(
        facts=facts_of(info, len(content), hashlib.sha256(content).hexdigest()),
        heads={head.id: head.taxonomy for head in info.taxonomies},
        input_size=info.input_size,
        predict=predict,
    )


def facts_of(info: ModelInfo, size_bytes: int | None, sha256: str | None, kind: str = "onnx") -> ModelFacts:
    """Return what a report says of a model.

    Seeds and epochs are those of ``info.recipe``, hours those of ``info.data["training_hours"]``; of an
    ensemble they are gathered from its members, which carry ``seeds``, ``epochs`` and ``hours``.
    """
    if info.members:
        seeds = [int(seed) for member in info.members for seed in member.get("seeds", ())]
        epochs = [int(m["epochs"]) for m in info.members if m.get("epochs") is not None]
        hours = [float(m["hours"]) for m in info.members if m.get("hours") is not None]
        # A sum over some of the members would be too small without saying so.
        complete = len(hours) == len(info.members)
    else:
        seeds = [int(info.recipe["seed"])] if info.recipe.get("seed") is not None else []
        trained = info.data.get("epochs", info.recipe.get("epochs"))
        epochs = [] if trained is None else [int(trained)]
        hours = [float(info.data["training_hours"])] if info.data.get("training_hours") is not None else []
        complete = bool(hours)
    told = data_of(info)
    return ModelFacts(
        name=info.name,
        version=info.version,
        kind=kind,
        architecture=info.architecture,
        parameters=info.parameters,
        mmac=info.mmac,
        size_bytes=size_bytes,
        sha256=sha256,
        members=max(1, len(info.members)),
        seeds=tuple(seeds),
        epochs=max(epochs, default=None),
        hours=sum(hours) if complete else None,
        fitted_on=_splits(told, *_CHOSEN_ON),
        data=_fingerprints(*told),
        trained_on=_splits(told, "train_split"),
        held_out=_held_out(info.metrics),
        weights_fitted=_weights_fitted(info),
    )


def data_of(info: ModelInfo) -> list[Mapping[str, Any]]:
    """Return what a model says of its data, and its members of theirs, those of votes inside it too."""
    return [info.data, *_data_of_members(info.members)]


def _data_of_members(members: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for member in members:
        found += [member.get("data", {}), *_data_of_members(member.get("members", ()))]
    return found


def _weights_fitted(info: ModelInfo) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return split and fingerprints of each fit of weights, that of a vote inside the vote too."""
    # Of the file itself the rows tell, which it had before its data did.
    found = [(row.split, _fingerprints(info.data)) for row in _held_out(info.metrics)]
    found += [
        (str(data["fitted_on"]), _fingerprints(data))
        for data in _data_of_members(info.members)
        if "fitted_on" in data
        and any(str(what).startswith(_WEIGHTS_FITTED) for what in data.get("fitted", {}).values())
    ]
    return tuple(dict.fromkeys(found))


def knows_data(facts: ModelFacts, dataset: FaceDataset) -> bool:
    """Tell whether a model was trained, selected or fitted on this data set, with votes or without.

    More faces in PrivateTest do not make it another one. A model that does not say on what is taken to know
    data that name their splits, so that a selection split does not pass for a test.

    Args:
        facts: The model.
        dataset: The whole data set, before faces are selected.
    """
    return _stands_for(facts.data, dataset)


def weights_fitted_here(facts: ModelFacts, dataset: FaceDataset, split: str) -> bool:
    """Tell whether a vote's weights were fitted on (some of) the faces of this split of this data set.

    Args:
        facts: The model.
        dataset: The whole data set, before faces are selected.
        split: Name of the split, or :data:`ferkit.evaluation.evaluate.EVERYTHING`.
    """
    return any(
        split in (fitted, EVERYTHING) and _stands_for(data, dataset) for fitted, data in facts.weights_fitted
    )


def with_held_out(evaluation: Evaluation, facts: ModelFacts) -> Evaluation:
    """Return an evaluation whose figures out of fold are those of the file, and None where it has none.

    For a vote whose weights were fitted on the measured faces: a temperature that is fitted again, out of
    fold, leaves the weights in sample.
    """
    told = {(r.split, r.tta, r.labels, r.without_leaks, r.n): r for r in facts.held_out}

    def renewed(scores: tuple[Scores, ...], tta: str, without_leaks: bool) -> tuple[Scores, ...]:
        rows = [told.get((evaluation.split, tta, s.labels, without_leaks, s.n)) for s in scores]
        return tuple(
            replace(
                s,
                nll_out_of_fold=None if row is None else row.nll,
                ece_out_of_fold=None if row is None else row.ece,
            )
            for s, row in zip(scores, rows, strict=True)
        )

    tta_modes = (
        replace(
            entry,
            scores=renewed(entry.scores, entry.tta, False),
            without_leaks=entry.without_leaks and renewed(entry.without_leaks, entry.tta, True),
        )
        for entry in evaluation.tta_modes
    )
    return replace(evaluation, tta_modes=tuple(tta_modes))


def _held_out(metrics: Sequence[Mapping[str, Any]]) -> tuple[HeldOut, ...]:
    """Return what a file's ``metrics`` say of a vote with fitted weights; they hold nothing else for it."""
    return tuple(
        HeldOut(
            split=str(row["split"]),
            tta=str(row["tta"]),
            labels=str(row["labels"]),
            without_leaks=bool(row.get("without_leaks", False)),
            n=int(row["n"]),
            accuracy=float(row["accuracy"]),
            interval=(float(row["interval"][0]), float(row["interval"][1])),
            # Before files told both, `nll` and `ece` were those out of fold.
            nll=float(row.get("nll_out_of_fold", row["nll"])),
            ece=float(row.get("ece_out_of_fold", row["ece"])),
        )
        for row in metrics
        if str(row.get("fit", "")).startswith(_WEIGHTS_FITTED)
    )


def _stands_for(fingerprints: Sequence[str], dataset: FaceDataset) -> bool:
    """Tell whether one of the fingerprints is this data set's; if there are none, whether it names splits."""
    if not fingerprints:
        return dataset.split_named
    if dataset.fingerprint in fingerprints or faces_digest(dataset) in fingerprints:
        return True
    shown = np.asarray(dataset.split) != SPLITS.index("PrivateTest")
    return not shown.all() and faces_digest(dataset.select(shown)) in fingerprints


def _splits(data: Sequence[Mapping[str, Any]], *keys: str) -> tuple[str, ...]:
    """Return the splits that models' ``data`` name under these keys, each once."""
    named = (part.get(key) for part in data for key in keys)
    return tuple(dict.fromkeys(str(split) for split in named if split))


def _fingerprints(*data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fingerprints in models' ``data``, each once."""
    named = (part.get(key) for part in data for key in ("fingerprint", "faces"))
    return tuple(dict.fromkeys(str(digest) for digest in named if digest))
