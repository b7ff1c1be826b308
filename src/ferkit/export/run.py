"""From a training run to a model file: temperatures fitted, predictions compared, provenance recorded."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ferkit import __version__
from ferkit.core.classifier import FaceClassifier
from ferkit.core.crops import TTA_MODES, TtaMode
from ferkit.core.errors import DataError, ModelFileError, TaxonomyError, TrainingError
from ferkit.core.files import write_json
from ferkit.core.modelfile import Fit, ModelInfo, Parity, Provenance, write_model
from ferkit.core.taxonomy import BASIC, FERPLUS
from ferkit.data import faces_digest, load_data
from ferkit.data.cartoon import draw_faces
from ferkit.data.dataset import FaceDataset
from ferkit.evaluation.calibration import determined_temperature
from ferkit.evaluation.evaluate import (
    SELECTION_SPLIT,
    TRAINING_SPLIT,
    Target,
    evaluate_split,
    leaks_show,
    targets_for,
)
from ferkit.evaluation.join import has_both
from ferkit.evaluation.model import describe_run, metric_rows
from ferkit.export.graph import has_cam, to_onnx
from ferkit.export.join import default_of, with_basic, with_coverage, with_priors, with_quality
from ferkit.training.inference import predict_logits, predict_probabilities
from ferkit.training.runs import TEMPERATURES, Run, load_run
from ferkit.training.state import network_arrays, write_archive

TOLERANCE = 1e-4
"""Largest difference of a probability between the Keras network and the file, with float32 weights."""

AGREEMENT, POINTS = 0.995, 0.001
"""Reduced precision: the same label on at least this share of faces, and accuracy within this of float32."""

LICENCE = "Research use only, as FER2013 itself; see LICENSE-WEIGHTS.md"


def export_run(
    run: Run | str | Path,
    data: FaceDataset | str | Path,
    path: str | Path,
    *,
    votes: str | Path | None = None,
    name: str | None = None,
    version: str = "1",
    precision: str = "float32",
    default_taxonomy: str | None = None,
    cams: bool = True,
    licence: str | None = None,
    notes: str = "",
) -> ModelInfo:
    """Write a run's network as a model file; :func:`ferkit.export` is this function.

    A network with the heads ``fer2013`` and ``ferplus`` gets the output ``basic``, which joins both.

    Args:
        run: A finished run, or its folder.
        data: The run's data, loaded or by its source. Temperatures are fitted on its validation split
            (FER2013: PublicTest; ``ferplus``: on majority labels), and there predictions are compared and
            metrics are measured.
        path: The file, ``.onnx``.
        votes: FER+ votes, where ``data`` is a csv file.
        name: The model's name; by default the recipe's.
        version: The model's version.
        precision: Of the stored weights: ``float32``, ``float16``, ``mixed`` or ``int8``.
        default_taxonomy: The default output; by default ``basic`` where it is added, else the first head.
        cams: Whether to add class activation maps.
        licence: Of the weights. By default :data:`LICENCE` if the faces are FER2013's, or the run had initial
            weights or a teacher, else "not stated".
        notes: Free text.

    Returns:
        The file's metadata.

    Raises:
        ModelFileError: If the path does not end in .onnx, or the file's predictions differ from the network's
            by more than is allowed; nothing is written then.
        TrainingError: If the run is not finished, or data lack labels for a head.
        DataError: If the data have no such split, or are not the run's.
        TaxonomyError: If there is no output ``default_taxonomy``.
        OutputError: If the file cannot be written.

    Example:
        >>> import ferkit
        >>> ferkit.export("runs/mine", "faces/", "mine.onnx", precision="float16")  # doctest: +SKIP
    """
    if Path(path).suffix != ".onnx":
        raise ModelFileError(f"a model file ends with .onnx. Received: {path}")
    run = run if isinstance(run, Run) else load_run(run)
    ids = [taxonomy.id for taxonomy in run.taxonomies]
    outputs = [*ids, BASIC.id] if has_both({t.id: t for t in run.taxonomies}) else ids
    if default_taxonomy is not None and default_taxonomy not in outputs:
        raise TaxonomyError(f"the run has no output {default_taxonomy!r}; it has {', '.join(outputs)}")
    if not isinstance(data, FaceDataset):
        needed_by = f"run {run.folder}"
        data = load_data(data, votes=votes, size=run.input_size, needed_by=needed_by, heads=run.taxonomies)
    described = describe_run(run, {})
    provenance = described.training
    _check_data(provenance, data)
    heads = {taxonomy.id: taxonomy for taxonomy in run.taxonomies}
    split = provenance.selected_on or SELECTION_SPLIT
    chosen = data.of_split(split)
    faces, targets = np.ascontiguousarray(chosen.images), targets_for(chosen, heads)
    network = run.network()
    temperatures = _fit_temperatures(predict_logits(network, faces), targets)
    if missing := [head for head in ids if head not in temperatures]:
        raise TrainingError(
            f"the temperature of {missing[0]} cannot be fitted: {data.source} has no labels for it in {split}"
            + ("; add --votes" if missing[0] == FERPLUS.id and data.votes is None else "")
        )
    fitted: dict[str, Fit] = dict.fromkeys(temperatures, "temperature")
    info = described.model_copy(
        update={
            "name": name or described.name,
            "version": version,
            "taxonomies": tuple(
                head.model_copy(
                    update={"temperature": temperatures[head.id], "cam": cams and has_cam(network, head.id)}
                )
                for head in described.taxonomies
            ),
            "default_taxonomy": ids[0],
            "training": provenance.model_copy(update={"fitted_on": split, "fitted": fitted}),
            "precision": precision,
            "licence": licence or _licence(provenance),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "ferkit_version": __version__,
            "notes": notes,
        }
    )
    graph = to_onnx(network, temperatures, cams=cams, precision=precision)
    trained_on = (provenance.trained_on or TRAINING_SPLIT,)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "trial.onnx"
        write_model(graph, info, trial)
        sample = np.concatenate([faces, draw_faces(64, seed=7, size=run.input_size).images])
        expected = predict_probabilities(network, sample, temperatures=temperatures)
        found = FaceClassifier(trial).predict(sample)
        parity = _check_parity(precision, expected, found, targets)
        predictions = {head: p[: len(faces)] for head, p in found.items()}
        graph, info = with_basic(graph, info, predictions, chosen, split)
        info = with_coverage(info, predictions, chosen, split)
        info = with_priors(info, data.of_split(trained_on[0]))
        info = info.model_copy(update={"default_taxonomy": default_taxonomy or default_of(info)})
        write_model(graph, info, trial)
        classifier = FaceClassifier(trial)
        info = with_quality(info, classifier.predict, chosen)
        measured = evaluate_split(
            lambda crops, tta: classifier.predict(crops, tta=cast(TtaMode, tta)),
            data,
            heads={head.id: head.taxonomy for head in info.taxonomies},
            split=split,
            tta_modes=TTA_MODES,
            drop_leaks=leaks_show(data, split, trained_on),
            train_splits=trained_on,
        )
    info = info.model_copy(update={"metrics": metric_rows(measured), "parity": parity})
    write_model(graph, info, path)
    if run.folder is not None:
        write_json(run.folder / TEMPERATURES, temperatures)
    return info


def _fit_temperatures(
    logits: Mapping[str, NDArray[np.float32]], targets: tuple[Target, ...]
) -> dict[str, float]:
    """Return the temperature by taxonomy, fitted to the first of the label sets (majority before argmax)."""
    found: dict[str, float] = {}
    for target in targets:
        head, keep = target.taxonomy.id, target.keep
        if head not in found:
            found[head] = round(determined_temperature(logits[head][keep], target.labels[keep]), 6)
    return found


def _check_data(known: Provenance, data: FaceDataset) -> None:
    """Refuse data with other faces, labels or splits than the run's; votes may come or go."""
    if data.fingerprint not in known.digests and faces_digest(data) not in known.digests:
        raise DataError(
            f"{data.source} is not the data of this run ({known.source}): its faces, labels or splits "
            "differ, so temperatures and metrics would be those of other data"
        )


def _licence(provenance: Provenance) -> str:
    # The faces behind a teacher or initial weights are not recorded; those of ferkit's models are FER2013's.
    if provenance.has_fer2013_faces or provenance.init or provenance.teachers:
        return LICENCE
    return "Not stated by its author"


def _check_parity(
    precision: str,
    expected: Mapping[str, NDArray[Any]],
    found: Mapping[str, NDArray[Any]],
    targets: tuple[Target, ...],
) -> Parity:
    """Return how far a file's probabilities are from the network's, or refuse what is too far.

    Probabilities are float ``[M, K]`` by head; ``targets`` are labels of the first N of the M faces.

    Raises:
        ModelFileError: If the difference is larger than :data:`TOLERANCE` with float32 weights, or labels or
            accuracy differ by more than :data:`AGREEMENT` and :data:`POINTS` allow.
    """
    difference = max(float(np.abs(expected[head] - found[head]).max()) for head in expected)
    same = min(float((expected[head].argmax(1) == found[head].argmax(1)).mean()) for head in expected)
    if precision == "float32" and not difference <= TOLERANCE:
        raise ModelFileError(
            f"the file's probabilities differ from the Keras network's by {difference:.2e}; at most "
            f"{TOLERANCE:.0e} is allowed, so nothing was written"
        )
    if not same >= AGREEMENT:
        raise ModelFileError(
            f"with {precision} weights only {100 * same:.2f} % of the faces get the same label; at least "
            f"{100 * AGREEMENT} % must, so nothing was written"
        )
    for target in targets if precision != "float32" else ():
        head, keep = target.taxonomy.id, target.keep
        before, after = (
            float((p[head][: len(keep)].argmax(1) == target.labels)[keep].mean()) for p in (expected, found)
        )
        if abs(before - after) > POINTS:
            raise ModelFileError(
                f"{precision} weights change the accuracy on {target.name} from {100 * before:.2f} to "
                f"{100 * after:.2f} %; at most {100 * POINTS} points are allowed, so nothing was written"
            )
    return Parity(largest_difference=difference, same_label=same, faces=len(next(iter(expected.values()))))


def write_training_weights(run: Run, out: str | Path) -> int:
    """Write a run's weights as float16 for fine-tuning (``ferkit train --init``); return the bytes.

    Raises:
        OutputError: If the file cannot be written.
    """
    network = run.network()
    arrays = network_arrays(network, tuple(t.id for t in run.taxonomies))
    # Running variances may exceed float16's range and are few.
    small = {k: v.astype(np.float16) if v.size > 4096 else v for k, v in arrays.items()}
    write_archive(out, small, run.meta())
    return Path(out).stat().st_size
