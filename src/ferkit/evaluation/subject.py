"""What is measured: a model file or a training run, behind one function that answers with probabilities."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ferkit.classifier import FaceClassifier
from ferkit.crops import Protocol
from ferkit.data import SPLITS, FaceDataset, faces_digest
from ferkit.errors import DataError
from ferkit.evaluation.evaluate import TRAINING_SPLIT, Predict
from ferkit.extras import require
from ferkit.modelfile import ModelInfo, resolve_model
from ferkit.taxonomy import Taxonomy

_CHOSEN_ON = ("validation_split", "fitted_on")
"""Keys of a model's ``data`` that name splits on which something about it was chosen."""


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
        predict: The model itself.
    """

    facts: ModelFacts
    heads: Mapping[str, Taxonomy]
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

    def predict(crops: NDArray[np.uint8], protocol: str) -> Mapping[str, NDArray[Any]]:
        if crops.shape[1:] != (size, size):
            raise DataError(f"run {folder} takes faces of {size} pixels. Received: {list(crops.shape)}")
        return predict_probabilities(
            network, crops, protocol=cast(Protocol, protocol), temperatures=temperatures, shift=shift
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

    def predict(crops: NDArray[np.uint8], protocol: str) -> Mapping[str, NDArray[Any]]:
        return classifier.predict(crops, protocol=cast(Protocol, protocol))

    return Subject(
        facts=facts_of(info, len(content), hashlib.sha256(content).hexdigest()),
        heads={head.id: head.taxonomy for head in info.taxonomies},
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
    told = [info.data, *(member.get("data", {}) for member in info.members)]
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
    )


def knows_data(facts: ModelFacts, dataset: FaceDataset) -> bool:
    """Tell whether a model was trained, selected or fitted on this data set, with votes or without.

    More faces in PrivateTest do not make it another one. A model that does not say on what is taken to know
    data that name their splits, so that a selection split does not pass for a test.

    Args:
        facts: The model.
        dataset: The whole data set, before faces are selected.
    """
    if not facts.data:
        return dataset.split_named
    if dataset.fingerprint in facts.data or faces_digest(dataset) in facts.data:
        return True
    shown = np.asarray(dataset.split) != SPLITS.index("PrivateTest")
    return not shown.all() and faces_digest(dataset.select(shown)) in facts.data


def _splits(data: Sequence[Mapping[str, Any]], *keys: str) -> tuple[str, ...]:
    """Return the splits that models' ``data`` name under these keys, each once."""
    named = (part.get(key) for part in data for key in keys)
    return tuple(dict.fromkeys(str(split) for split in named if split))


def _fingerprints(*data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fingerprints in models' ``data``, each once."""
    named = (part.get(key) for part in data for key in ("fingerprint", "faces"))
    return tuple(dict.fromkeys(str(digest) for digest in named if digest))
