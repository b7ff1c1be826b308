"""Teachers of a student: offline (predictions computed once and kept) and online (computed in every step)."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.classifier import FaceClassifier
from ferkit.core.crops import TtaMode
from ferkit.core.errors import OutputError, TrainingError
from ferkit.core.files import cache_folder
from ferkit.core.modelfile import ModelInfo, read_model, resolve_model
from ferkit.core.taxonomy import Taxonomy
from ferkit.data.cache import digest_of
from ferkit.training.runs import load_training_weights
from ferkit.training.state import digest_arrays, read_archive, write_archive

CHUNK = 512
"""Faces that a teacher predicts at once, offline."""

SAVE_SECONDS = 30.0
"""Predictions are saved at least this often, so that an interruption loses little."""

OnBatch = Callable[[str, int, int], None]
"""Called with a teacher's name, the number of faces that it has predicted, and the number of faces."""


@dataclass(frozen=True, slots=True)
class TeacherPredictions:
    """What the teachers predict for the training faces, averaged."""

    # float16 ``[N, K]`` by taxonomy id: the mean over the teachers that have the taxonomy.
    probabilities: Mapping[str, NDArray[np.float16]]
    models: tuple[Mapping[str, str], ...]  # name and SHA-256 (hex) of each teacher's model file
    tta: str  # the test-time augmentation of the predictions
    faces: str  # SHA-256 (hex) of the N images
    calibrated: bool = True  # whether the probabilities are those of the model files, after calibration

    @property
    def heads(self) -> tuple[str, ...]:
        """The taxonomies that are predicted."""
        return tuple(self.probabilities)

    def targets(self, temperature: float) -> dict[str, NDArray[np.float32]]:
        """Return soft targets float32 ``[N, K]`` at a temperature: ``p ** (1 / T)``, normalised."""
        return {head: _soften(p, temperature) for head, p in self.probabilities.items()}

    def facts(self, taxonomy: str, labels: NDArray[np.int64]) -> dict[str, Any]:
        """Return what ``run.json`` records, with the teachers' accuracy on ``labels`` of ``taxonomy``."""
        facts = _facts(self.models, self.heads, self.tta, calibrated=self.calibrated, online=False)
        if taxonomy in self.probabilities:
            right = self.probabilities[taxonomy].argmax(axis=1) == labels
            facts["training_accuracy"] = round(float(right.mean()), 6)
        return facts

    def save(self, path: Path) -> None:
        """Write the predictions, so that a resumed run needs no teacher."""
        meta = {
            "teachers": [dict(model) for model in self.models],
            "tta": self.tta,
            "faces": self.faces,
            "calibrated": self.calibrated,
        }
        write_archive(path, self.probabilities, meta)

    @classmethod
    def load(cls, path: Path, images: NDArray[np.uint8]) -> TeacherPredictions:
        """Read predictions; raise TrainingError if they are missing, damaged, or for other faces."""
        arrays, meta = read_archive(path)
        try:
            models = tuple({"name": str(t["name"]), "sha256": str(t["sha256"])} for t in meta["teachers"])
            found = cls(arrays, models, meta["tta"], meta["faces"], bool(meta["calibrated"]))
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{path} holds no predictions of a teacher: {error!r}") from error
        if found.faces != digest_of(images) or any(len(p) != len(images) for p in arrays.values()):
            raise TrainingError(f"{path} holds a teacher's predictions for other faces than these")
        return found


def predict_offline(
    teachers: Sequence[str | Path],
    images: NDArray[np.uint8],
    taxonomies: Sequence[Taxonomy],
    tta: TtaMode,
    *,
    calibrated: bool = True,
    on_batch: OnBatch | None = None,
    cache: Path | None = None,
) -> TeacherPredictions:
    """Compute every teacher's predictions for every face.

    Predictions are saved in the cache while they are computed: an interrupted command computes the rest
    only, and a second student of the same teacher computes nothing.

    Args:
        teachers: Model files (ensembles too), or names of models.
        images: uint8 ``[N, S, S]``.
        taxonomies: The student's heads.
        tta: ``none``, ``flip`` or ``ten-crop``.
        calibrated: Use the probabilities of the model files. False undoes each teacher's temperature after
            test-time augmentation, which gives the probabilities that the teacher's own loss was computed
            with. This is not possible for an ensemble file, whose members are calibrated inside the graph.
        on_batch: Called after every batch of faces.
        cache: Folder of the saved predictions; by default ``teachers`` in the user's cache.

    Raises:
        TrainingError: If a teacher takes faces of another size, has other labels under a head's name, has
            none of the heads, or is an ensemble and ``calibrated`` is False.
        ModelFileError: If a teacher's file is missing or damaged.
    """
    folder = cache_folder() / "teachers" if cache is None else cache
    faces = digest_of(images)
    sums: dict[str, NDArray[np.float32]] = {}
    counts: dict[str, int] = {}
    models: list[Mapping[str, str]] = []
    # All teachers are checked before the first predicts, which may take hours.
    for content, info, heads in [_read(t, images.shape[1], taxonomies, calibrated) for t in teachers]:
        digest = hashlib.sha256(content).hexdigest()
        saved = folder / f"{digest[:24]}-{faces[:24]}-{tta}-{'-'.join(heads)}.npz"
        predictions = _predict_one(content, heads, images, tta, saved, info.name, on_batch)
        for head, p in predictions.items():
            p = p if calibrated else _soften(p, 1 / info.head(head).temperature)  # noqa: PLW2901
            sums[head] = sums[head] + p if head in sums else p
            counts[head] = counts.get(head, 0) + 1
        models.append({"name": info.name, "sha256": digest})
    means = {head: (total / counts[head]).astype(np.float16) for head, total in sums.items()}
    return TeacherPredictions(means, tuple(models), tta, faces, calibrated)


class OnlineTeachers:
    """Teachers that predict, in every step, the pixels that the student sees: augmented and mixed.

    A student can match its teachers on any picture, not only on the training faces, whose labels the
    teachers may have memorised (Beyer et al. 2022).

    Args:
        teachers: Run folders, files of training weights (``*.weights.npz``), or names of models.
        size: Side of the faces.
        taxonomies: The student's heads.
        tta: ``none``, or ``flip`` for the mean of the predictions for a face and its mirror image.
        calibrated: Divide logits by the temperatures that the training weights record.
        dtype: Dtype policy of the teachers' networks.

    Raises:
        TrainingError: As :func:`predict_offline`; or if there are no training weights of a teacher, or they
            record no temperature and ``calibrated`` is True.
    """

    def __init__(
        self,
        teachers: Sequence[str | Path],
        size: int,
        taxonomies: Sequence[Taxonomy],
        tta: TtaMode,
        *,
        calibrated: bool = True,
        dtype: str = "float32",
    ) -> None:
        self.tta, self.calibrated = tta, calibrated
        self.weights = [load_training_weights(teacher) for teacher in teachers]
        self.models: list[Mapping[str, str]] = []
        self._networks: list[tuple[Any, dict[str, float]]] = []
        for teacher, weights in zip(teachers, self.weights, strict=True):
            heads = _shared_heads(teacher, weights.input_size, weights.taxonomies, size, taxonomies)
            if calibrated and not set(heads) <= set(weights.temperatures):
                raise TrainingError(
                    f"the training weights of teacher {teacher} record no temperatures, so it is not "
                    "calibrated; export its run first, or set distil.calibrated=false"
                )
            temperatures = {head: weights.temperatures[head] if calibrated else 1.0 for head in heads}
            self._networks.append((weights.network(dtype), temperatures))
            name = Path(teacher).name.removesuffix(".npz").removesuffix(".weights")
            self.models.append({"name": name, "sha256": digest_arrays(weights.arrays)})
        known = {head for _, temperatures in self._networks for head in temperatures}
        self.heads = tuple(t.id for t in taxonomies if t.id in known)

    def __call__(self, faces: Any, temperature: float) -> dict[str, Any]:
        """Return soft targets float32 ``[N, K]`` by taxonomy id, normalised.

        Args:
            faces: Tensor float32 ``[N, S, S, 1]`` in 0..255.
            temperature: Of the targets: ``p ** (1 / T)``, normalised.
        """
        from keras import ops

        views = [faces] if self.tta == "none" else [faces, ops.flip(faces, axis=2)]
        predicted: dict[str, list[Any]] = {head: [] for head in self.heads}
        for network, temperatures in self._networks:
            logits = [network(view, training=False) for view in views]
            for head, own in temperatures.items():
                predicted[head] += [ops.softmax(ops.cast(one[head], "float32") / own) for one in logits]
        means = {head: sum(p) / len(p) for head, p in predicted.items()}
        return {head: ops.softmax(ops.log(ops.maximum(p, 1e-30)) / temperature) for head, p in means.items()}

    def facts(self, *_: Any) -> dict[str, Any]:
        """Return what ``run.json`` records."""
        return _facts(self.models, self.heads, self.tta, calibrated=self.calibrated, online=True)


def _facts(
    models: Sequence[Mapping[str, str]], heads: Sequence[str], tta: str, *, calibrated: bool, online: bool
) -> dict[str, Any]:
    return {
        "models": [dict(model) for model in models],
        "heads": sorted(heads),
        "tta": tta,
        "calibrated": calibrated,
        "online": online,
    }


def _soften(p: NDArray[Any], temperature: float) -> NDArray[np.float32]:
    """Return ``p ** (1 / T)``, normalised, float32 ``[N, K]``."""
    raised = np.maximum(p.astype(np.float64), 1e-12) ** (1 / temperature)
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


def _read(
    teacher: str | Path, size: int, taxonomies: Sequence[Taxonomy], calibrated: bool
) -> tuple[bytes, ModelInfo, list[str]]:
    """Return a teacher's model file, its metadata and the heads that it shares with the student."""
    content, info = read_model(resolve_model(teacher))
    if info.members and not calibrated:
        raise TrainingError(
            f"teacher {teacher} is an ensemble of {', '.join(m.name for m in info.members)}, whose "
            "members are calibrated inside the graph, so distil.calibrated = false is not possible; name its "
            "members as teachers, or set distil.calibrated=true"
        )
    own = [head.taxonomy for head in info.taxonomies]
    return content, info, _shared_heads(teacher, info.input_size, own, size, taxonomies)


def _shared_heads(
    teacher: str | Path, teacher_size: int, own: Sequence[Taxonomy], size: int, taxonomies: Sequence[Taxonomy]
) -> list[str]:
    """Return the ids of the student's taxonomies that a teacher has too, or refuse the teacher."""
    if teacher_size != size:
        raise TrainingError(f"teacher {teacher} takes faces of {teacher_size} pixels; these have {size}")
    known = {taxonomy.id: taxonomy for taxonomy in own}
    shared = [taxonomy for taxonomy in taxonomies if taxonomy.id in known]
    for taxonomy in shared:
        if known[taxonomy.id] != taxonomy:
            own_labels, labels = ", ".join(known[taxonomy.id].labels), ", ".join(taxonomy.labels)
            raise TrainingError(
                f"{taxonomy.id} of teacher {teacher} has the labels {own_labels}; the student's are {labels}"
            )
    if not shared:
        raise TrainingError(
            f"teacher {teacher} has the heads {', '.join(known)}; the student's are "
            f"{', '.join(t.id for t in taxonomies)}"
        )
    return [taxonomy.id for taxonomy in shared]


def _predict_one(
    content: bytes,
    heads: Sequence[str],
    images: NDArray[np.uint8],
    tta: TtaMode,
    saved: Path,
    name: str,
    on_batch: OnBatch | None,
) -> dict[str, NDArray[np.float32]]:
    """Return one teacher's predictions float32 ``[N, K]`` by head, rounded to float16.

    They are rounded as they are saved, so that a student's targets do not depend on what was saved.
    """
    total = len(images)
    parts = _load_saved(saved, heads, total)
    done = len(parts[0][heads[0]]) if parts else 0
    if on_batch is not None:
        on_batch(name, done, total)
    if done < total:
        classifier = FaceClassifier(content)
        last_save = time.monotonic()
        try:
            while done < total:
                faces = np.ascontiguousarray(images[done : done + CHUNK])
                predictions = classifier.predict(faces, tta=tta, taxonomies=heads)
                parts.append({head: p.astype(np.float16) for head, p in predictions.items()})
                done += len(faces)
                if on_batch is not None:
                    on_batch(name, done, total)
                if time.monotonic() - last_save > SAVE_SECONDS:
                    _save(saved, parts)
                    last_save = time.monotonic()
        finally:
            if parts:
                _save(saved, parts)
    return {head: np.concatenate([part[head] for part in parts]).astype(np.float32) for head in heads}


def _load_saved(saved: Path, heads: Sequence[str], total: int) -> list[dict[str, NDArray[np.float16]]]:
    """Return the saved predictions as one part; nothing if the file is absent or damaged."""
    try:
        arrays, _ = read_archive(saved)
    except TrainingError:
        return []
    rows = {len(arrays[head]) if head in arrays else 0 for head in heads}
    if len(rows) != 1 or not 0 < next(iter(rows)) <= total:
        return []
    return [{head: arrays[head].astype(np.float16) for head in heads}]


def _save(saved: Path, parts: Sequence[Mapping[str, NDArray[np.float16]]]) -> None:
    """Save the predictions so far; a cache that cannot be written costs time, not the run."""
    arrays = {head: np.concatenate([part[head] for part in parts]) for head in parts[0]}
    with contextlib.suppress(OSError, OutputError):
        saved.parent.mkdir(parents=True, exist_ok=True)
        write_archive(saved, arrays, {})
