"""A teacher's answers about what a student trains on: asked once and kept, or asked in every step."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from ferkit.core.classifier import FaceClassifier
from ferkit.core.crops import TtaMode as Views
from ferkit.core.errors import FerkitError, OutputError, TrainingError
from ferkit.core.files import cache_folder, output_errors, write_bytes
from ferkit.core.modelfile import ModelInfo, read_model, resolve_model
from ferkit.core.taxonomy import Taxonomy
from ferkit.data.cache import digest_of
from ferkit.training import runs
from ferkit.training.graph import GraphFunction
from ferkit.training.state import read_archive, write_archive

CHUNK = 512
"""Faces between two looks at the clock."""

STEP_TTA_MODES: tuple[Views, ...] = ("none", "flip")
"""The views that a teacher can be asked about in every step."""

EXACT_TOLERANCE = 1e-3
"""How far a teacher's probabilities in float32 on the CPU may lie from its model file's."""

STEP_TOLERANCES = {"float32": 0.02, "float16": 0.02, "bfloat16": 0.1}
"""The same inside the training step, by dtype; there GPUs may multiply float32 in fewer bits."""

KEEP_SECONDS = 30.0
"""What was answered is kept at least this often, so that little is asked again after an interruption."""


class Told(Protocol):
    """What hears of the progress."""

    def __call__(self, *, teacher: str, done: int, faces: int) -> None:
        """Hear how many of the faces a teacher has answered."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the teachers say, together.

    Args:
        probabilities: float16 ``[N, K]`` by taxonomy id, as they are kept: the mean over the teachers that
            know the taxonomy.
        teachers: Name and SHA-256 (hex) of each teacher's file.
        tta: The views that each answer is averaged over.
        faces: SHA-256 (hex) of the N images.
        calibrated: Whether they are the model files' calibrated answers.
    """

    probabilities: Mapping[str, NDArray[np.float16]]
    teachers: tuple[Mapping[str, str], ...]
    tta: str
    faces: str
    calibrated: bool = True

    def targets(self, temperature: float) -> dict[str, NDArray[np.float32]]:
        """Return float32 targets at a temperature: ``p ** (1 / T)``, made to sum to 1."""
        return {head: _softened(p, temperature) for head, p in self.probabilities.items()}

    def agreement(self, head: str, labels: NDArray[np.int64]) -> float:
        """Return the share of faces for which the teachers' top class is the label."""
        return float((self.probabilities[head].argmax(axis=1) == labels).mean())


def ask_teachers(
    teachers: Sequence[str | Path],
    images: NDArray[np.uint8],
    taxonomies: Sequence[Taxonomy],
    tta: Views,
    *,
    calibrated: bool = True,
    told: Told | None = None,
    cache: Path | None = None,
) -> Answers:
    """Ask every teacher about every face.

    Each teacher's answers are kept in the cache as they come, so that an interrupted command asks only the
    rest, and a second student of the same teacher asks nothing.

    Args:
        teachers: Model files (an ensemble's is one), or names of embedded models.
        images: uint8 ``[N, S, S]``.
        taxonomies: The student's heads.
        tta: ``none``, ``flip`` or ``ten-crop``.
        calibrated: Take the answers as the model files give them. Otherwise each teacher's temperature is
            undone after its views are averaged: the answers are then as sure as the loss made them that it
            was trained by, which for soft labels is not what calibration on majority labels asks for. Not
            for an ensemble's file, whose members are calibrated inside: they can be named instead.
        told: Hears of the progress.
        cache: The folder of kept answers; by default ``teachers`` in the user's cache.

    Raises:
        TrainingError: If a teacher takes faces of another size, means other labels by a head's name, knows
            none of the heads, or is an ensemble whose answers before calibration are wanted.
        ModelFileError: If a teacher's file is missing or damaged.
    """
    folder = cache_folder() / "teachers" if cache is None else cache
    faces = digest_of(images)
    sums: dict[str, NDArray[np.float32]] = {}
    counts: dict[str, int] = {}
    known: list[Mapping[str, str]] = []
    # Each is looked at before any is asked, since the answers of one may take hours.
    for teacher in _look_at(teachers, images.shape[1], taxonomies, calibrated):
        kept = folder / f"{teacher.digest[:24]}-{faces[:24]}-{tta}-{'-'.join(teacher.heads)}.npz"
        answers = _ask_one(teacher.content, teacher.heads, images, tta, kept, teacher.info.name, told)
        for head, said in answers.items():
            answer = said if calibrated else _softened(said, 1 / teacher.info.head(head).temperature)
            sums[head] = sums[head] + answer if head in sums else answer
            counts[head] = counts.get(head, 0) + 1
        known.append(teacher.known)
    means = {head: (total / counts[head]).astype(np.float16) for head, total in sums.items()}
    return Answers(means, tuple(known), tta, faces, calibrated)


@dataclass(frozen=True, slots=True)
class _Teacher:
    """A teacher's file, and the student's heads that it answers in."""

    content: bytes
    info: ModelInfo
    heads: tuple[str, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def known(self) -> Mapping[str, str]:
        return {"name": self.info.name, "sha256": self.digest}


def _look_at(
    teachers: Sequence[str | Path], size: int, taxonomies: Sequence[Taxonomy], calibrated: bool
) -> list[_Teacher]:
    """Read every teacher's file, and refuse one that cannot teach this student."""
    if not teachers:
        raise TrainingError("name a teacher: a model file, or the name of an embedded model")
    opened = [(str(teacher), *read_model(resolve_model(teacher))) for teacher in teachers]
    return [
        _Teacher(content, info, tuple(_shared_heads(name, info, size, taxonomies, calibrated)))
        for name, content, info in opened
    ]


class StepTeachers:
    """Teachers that answer in every step about what the student sees: turned, lit, erased, mixed.

    A student that is asked about the same picture as its teachers can match them anywhere, not only on the
    training faces, whose labels they may know by heart (Beyer et al. 2022).

    Args:
        teachers: Model files (an ensemble's is one), or names of embedded models.
        size: Side of the faces.
        taxonomies: The student's heads.
        tta: ``none``, or ``flip``: the mean of the answers about a face and its mirror image.
        calibrated: As in :func:`ask_teachers`.
        dtype: Of the teachers' feature maps; what ``bfloat16`` rounds away moves a probability by some
            hundredths.

    Raises:
        TrainingError: As :func:`ask_teachers`; or if a teacher's graph cannot be computed here, or computes
            something else here than in ONNX Runtime.
        ModelFileError: If a teacher's file is missing or damaged.
    """

    def __init__(
        self,
        teachers: Sequence[str | Path],
        size: int,
        taxonomies: Sequence[Taxonomy],
        tta: Views,
        *,
        calibrated: bool = True,
        dtype: str = "float32",
    ) -> None:
        if tta not in STEP_TTA_MODES:
            raise TrainingError(
                f"a teacher that is asked in every step answers about {' or '.join(STEP_TTA_MODES)} views, "
                f"not {tta}"
            )
        self.tta, self.calibrated = tta, calibrated
        self._teachers = _look_at(teachers, size, taxonomies, calibrated)
        self.heads = tuple(t.id for t in taxonomies if any(t.id in one.heads for one in self._teachers))
        self._functions = []
        for teacher in self._teachers:
            function = GraphFunction(teacher.content, teacher.heads, name=teacher.info.name, dtype=dtype)
            _check_function(teacher, function, size)
            self._functions.append(function)

    def __call__(self, faces: Any, temperature: float) -> dict[str, Any]:
        """Return targets float32 ``[N, K]`` by taxonomy id, summing to 1.

        Args:
            faces: Tensor float32 ``[N, S, S, 1]`` in 0..255.
            temperature: Of the targets: ``p ** (1 / T)``, normalised.
        """
        shown = [faces[..., 0]]
        if self.tta == "flip":
            shown.append(ops.flip(shown[0], axis=2))
        said: dict[str, list[Any]] = {head: [] for head in self.heads}
        for teacher, function in zip(self._teachers, self._functions, strict=True):
            views = [function(view) for view in shown]
            for head in teacher.heads:
                p = sum(view[head] for view in views) / len(views)
                if not self.calibrated:
                    p = _tempered(p, 1 / teacher.info.head(head).temperature)
                said[head].append(p)
        return {head: _tempered(sum(p) / len(p), temperature) for head, p in said.items()}

    def models(self) -> list[dict[str, str]]:
        """Return the name and SHA-256 (hex) of each teacher's file, in their order."""
        return [dict(teacher.known) for teacher in self._teachers]

    def facts(self) -> dict[str, Any]:
        """Return what a run records of its teachers."""
        return {
            "models": self.models(),
            "heads": sorted(self.heads),
            "tta": self.tta,
            "calibrated": self.calibrated,
            "every_step": True,
        }

    def write(self, folder: Path) -> None:
        """Copy the teachers' files into a run's folder, so that it goes on without them.

        Raises:
            OutputError: If they cannot be written.
        """
        for k, teacher in enumerate(self._teachers):
            write_bytes(folder / runs.teacher_file(k), teacher.content)


def kept_teachers(folder: Path) -> list[Path]:
    """Return the teachers' files in a run's folder, in their order.

    Raises:
        TrainingError: If there are none.
    """
    found = _copies(folder)
    if not found:
        raise TrainingError(f"there is no {folder / runs.teacher_file(0)}, so the run cannot ask its teacher")
    return found


def forget_teachers(folder: Path) -> None:
    """Remove what a run kept of its teachers that was begun here before and left no checkpoint.

    Raises:
        OutputError: If it cannot be removed.
    """
    with output_errors(folder):
        for path in (folder / runs.TEACHER, *_copies(folder)):
            path.unlink(missing_ok=True)


def _copies(folder: Path) -> list[Path]:
    """Return the copies of teachers' files in a folder, in their order."""
    numbered = (folder / runs.teacher_file(k) for k in itertools.count())
    return list(itertools.takewhile(Path.exists, numbered))


def _check_function(teacher: _Teacher, function: GraphFunction, size: int) -> None:
    """Refuse a teacher that answers otherwise as operations of Keras than in ONNX Runtime.

    It is computed in float32 on the CPU, and then as the training step will.
    """
    faces = np.random.default_rng(0).integers(0, 256, (4, size, size), np.uint8)
    expected = FaceClassifier(teacher.content).predict(faces, taxonomies=teacher.heads)
    try:
        with keras.device("cpu"):
            exact = GraphFunction(teacher.content, teacher.heads, name=teacher.info.name)
            off = _farthest(exact(ops.convert_to_tensor(faces.astype(np.float32))), expected)
        rounded = _farthest(function(ops.convert_to_tensor(faces.astype(np.float32))), expected)
    except FerkitError:
        raise
    except Exception as error:  # options of operations that ferkit does not write; every backend has its own
        raise TrainingError(
            f"teacher {teacher.info.name} cannot be computed inside the training step: {error!r}; "
            "set distil.every_step=false"
        ) from error
    if not (off < EXACT_TOLERANCE and rounded < STEP_TOLERANCES[function.dtype]):
        raise TrainingError(
            f"teacher {teacher.info.name} answers otherwise inside the training step: a probability is off "
            f"by {off:.3g} in float32 and by {rounded:.3g} in {function.dtype}; set distil.every_step=false"
        )


def _farthest(got: Mapping[str, Any], expected: Mapping[str, NDArray[Any]]) -> float:
    """Return how far the farthest probability lies from what it should be."""
    off = [np.abs(np.asarray(ops.convert_to_numpy(got[head])) - p).max() for head, p in expected.items()]
    return float(np.max(off))


def _tempered(p: Any, temperature: float) -> Any:
    """Return ``p ** (1 / T)`` over its sum, of a tensor."""
    return p if temperature == 1 else ops.softmax(ops.log(ops.maximum(p, 1e-30)) / temperature, axis=-1)


def _softened(p: NDArray[Any], temperature: float) -> NDArray[np.float32]:
    """Return ``p ** (1 / T)`` over its sum, float32 ``[N, K]``."""
    raised = np.maximum(p.astype(np.float64), 1e-12) ** (1 / temperature)
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


def _shared_heads(
    teacher: str, info: ModelInfo, size: int, taxonomies: Sequence[Taxonomy], calibrated: bool
) -> list[str]:
    """Return the heads that a teacher is asked for, or refuse it."""
    if info.members and not calibrated:
        raise TrainingError(
            f"teacher {teacher} is an ensemble of {', '.join(m.name for m in info.members)}. Before "
            "calibration (distil.calibrated = false) only the vote's temperature could be undone, not its "
            "members': name its members instead, or set distil.calibrated=true"
        )
    if info.input_size != size:
        raise TrainingError(f"teacher {teacher} takes faces of {info.input_size} pixels; these have {size}")
    own = {head.id: head.taxonomy for head in info.taxonomies}
    shared = [t for t in taxonomies if t.id in own]
    for taxonomy in shared:
        if own[taxonomy.id] != taxonomy:
            raise TrainingError(
                f"teacher {teacher} means other labels by {taxonomy.id}: {', '.join(own[taxonomy.id].labels)}"
            )
    if not shared:
        raise TrainingError(
            f"teacher {teacher} answers in {', '.join(own)}; the student's heads are "
            f"{', '.join(t.id for t in taxonomies)}"
        )
    return [t.id for t in shared]


def _ask_one(
    content: bytes,
    heads: Sequence[str],
    images: NDArray[np.uint8],
    tta: Views,
    kept: Path,
    name: str,
    told: Told | None,
) -> dict[str, NDArray[np.float32]]:
    """Return float32 ``[N, K]`` by head, rounded to float16: what was kept before, and the rest asked now."""
    total = len(images)
    parts = _kept_parts(kept, heads, total)
    done = len(parts[0][heads[0]]) if parts else 0
    if told is not None:
        told(teacher=name, done=done, faces=total)
    if done < total:
        classifier = FaceClassifier(content)
        written = time.monotonic()
        try:
            while done < total:
                faces = np.ascontiguousarray(images[done : done + CHUNK])
                said = classifier.predict(faces, tta=tta, taxonomies=heads)
                # As they are kept, so that the targets are the same whether they were kept or not.
                parts.append({head: p.astype(np.float16) for head, p in said.items()})
                done += len(faces)
                if told is not None:
                    told(teacher=name, done=done, faces=total)
                if time.monotonic() - written > KEEP_SECONDS:
                    _keep(kept, parts)
                    written = time.monotonic()
        finally:
            if parts:
                _keep(kept, parts)
    return {head: np.concatenate([part[head] for part in parts]).astype(np.float32) for head in heads}


def _kept_parts(kept: Path, heads: Sequence[str], total: int) -> list[dict[str, NDArray[np.float16]]]:
    """Return what the cache holds, as one part or none; a file that is no good counts as absent."""
    try:
        arrays, _ = read_archive(kept)
    except TrainingError:
        return []
    rows = {len(arrays[head]) if head in arrays else 0 for head in heads}
    if len(rows) != 1 or not 0 < next(iter(rows)) <= total:
        return []
    return [{head: arrays[head].astype(np.float16) for head in heads}]


def _keep(kept: Path, parts: Sequence[Mapping[str, NDArray[np.float16]]]) -> None:
    """Write what was answered so far; a cache that cannot be written costs time, not the run."""
    arrays = {head: np.concatenate([part[head] for part in parts]) for head in parts[0]}
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_archive(kept, arrays, {})
    except (OSError, OutputError):
        return


def write_answers(path: Path, answers: Answers) -> None:
    """Write answers beside a run, so that it goes on without its teachers.

    Raises:
        OutputError: If the file cannot be written.
    """
    meta = {
        "teachers": [dict(t) for t in answers.teachers],
        "tta": answers.tta,
        "faces": answers.faces,
        "calibrated": answers.calibrated,
    }
    write_archive(path, answers.probabilities, meta)


def read_answers(path: Path, images: NDArray[np.uint8]) -> Answers:
    """Read answers about these faces.

    Raises:
        TrainingError: If the file is missing, damaged, or about other faces.
    """
    arrays, meta = read_archive(path)
    try:
        teachers = tuple({"name": str(t["name"]), "sha256": str(t["sha256"])} for t in meta["teachers"])
        kind = bool(meta.get("calibrated", True))  # files of version 0.1 do not say
        answers = Answers(arrays, teachers, meta["tta"], meta["faces"], kind)
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} holds no answers of a teacher: {error!r}") from error
    if answers.faces != digest_of(images) or any(len(p) != len(images) for p in arrays.values()):
        raise TrainingError(f"{path} holds a teacher's answers about other faces than these")
    return answers


def teacher_facts(answers: Answers, taxonomy: str, labels: NDArray[np.int64]) -> dict[str, Any]:
    """Return what a run records of its teachers."""
    facts: dict[str, Any] = {
        "models": [dict(t) for t in answers.teachers],
        "heads": sorted(answers.probabilities),
        "tta": answers.tta,
        "calibrated": answers.calibrated,
    }
    if taxonomy in answers.probabilities:
        facts["training_accuracy"] = round(answers.agreement(taxonomy, labels), 6)
    return facts
