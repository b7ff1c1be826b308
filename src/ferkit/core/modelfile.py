"""The model contract: one ONNX file that describes itself, written, read and verified.

The graph takes ``face``, uint8 ``[N, S, S]`` (grayscale, 0..255), and scales it itself. It has one output per
taxonomy, named by the taxonomy's id: float32 ``[N, K]``, calibrated probabilities. ``basic`` joins the
outputs ``fer2013`` and ``ferplus`` of a network that has both (:class:`Join`). Where the architecture has
them, ``cam_<taxonomy>`` are class activation maps, float32 ``[N, K, h, w]``. Everything else is
:class:`ModelInfo`, stored as JSON in the file's metadata under ``ferkit``. The entry ``ferkit.sha256`` is the
SHA-256 of the file with these 64 characters set to zeros. It detects damage; it is no signature.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from ferkit.core import files, onnxbytes
from ferkit.core.crops import FER2013_CROPS, CropGeometry, TtaMode
from ferkit.core.errors import ModelFileError, TaxonomyError
from ferkit.core.taxonomy import Taxonomy
from ferkit.weights import DEFAULT, find_model, held_models

FORMAT_VERSION: Final = 2
INPUT = "face"
CAM_PREFIX = "cam_"
INFO_KEY = "ferkit"
DIGEST_KEY = "ferkit.sha256"
ENSEMBLE = "ensemble"
"""The architecture of an ensemble."""

_NO_DIGEST = "0" * 64
_MAX_BYTES = 1 << 30

_FER2013_FACES = "5bd56e0a6264bfe012aa49b46b2b87bd1f8b631a31cd0489385489abb3911129"
"""Digest of FER2013's Training and PublicTest faces (:func:`ferkit.data.faces_digest`)."""

_FER2013_TRAINING, _FER2013_PUBLIC = range(28_000, 28_710), 3_589
"""Sizes of the splits; a recipe may leave leaks and constant images out of Training."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1), AfterValidator(lambda value: round(value, 6))]
Nats = Annotated[float, AfterValidator(lambda value: round(value, 6))]
Count = Annotated[int, Field(ge=0)]
Fit = Literal["nothing", "temperature", "weights and temperature", "join"]
"""What was fitted: a network's or an ensemble's temperature, an ensemble's weights, a :class:`Join`."""


class _Record(BaseModel):
    """A part of the metadata. Unknown fields are ignored, so that a later ferkit may add some."""

    model_config = ConfigDict(frozen=True)


class Weights(_Record):
    """Weights or a model file that a training run used."""

    name: str  # the model's or the file's name
    sha256: str = ""  # digest of the file, or of the weight arrays
    heads: tuple[str, ...] = ()  # the heads whose weights were taken over


class Teachers(_Record):
    """What a student was distilled from."""

    models: tuple[Weights, ...]  # the teachers
    heads: tuple[str, ...]  # the heads in which the student learnt from them
    tta: TtaMode = "none"  # test-time augmentation of the teachers' predictions
    calibrated: bool = True  # whether the teachers' temperatures were applied
    # Whether the teachers predicted each augmented batch (online distillation), or each training face once
    # (offline distillation).
    online: bool = False
    weight: Share = 0.0  # share of the distillation loss in the loss of these heads
    temperature: Positive = 1.0  # of the soft targets
    # Of the teachers' mean on the training faces, where it was measured.
    training_accuracy: float | None = None


class EpochChange(_Record):
    """A change of a run's number of epochs: ``epochs`` before and after it, made after epoch ``after``."""

    after: int
    epochs: tuple[int, int]


class Provenance(_Record):
    """What a model was trained, selected and fitted on, and how; an ensemble's is that of its own fit."""

    source: str = ""  # name of the data, without the folder
    fingerprint: str = ""  # SHA-256 of the data set, with votes
    faces: str = ""  # SHA-256 of its images, labels and splits, without votes
    training: Count = 0  # number of training faces
    validation: Count = 0  # number of validation faces
    trained_on: str = ""  # split that the weights were trained on; empty for an ensemble, or if unknown
    selected_on: str = ""  # split that was watched during training
    # Split that temperatures or an ensemble's weights were fitted on; empty if nothing was.
    fitted_on: str = ""
    fitted: dict[str, Fit] = {}  # what was fitted there, by taxonomy
    seeds: tuple[int, ...] = ()  # seeds of the training run
    epochs: Count | None = None  # epochs that were trained; None if unknown
    changed: tuple[EpochChange, ...] = ()  # changes of the number of epochs during the run
    # Hours of training, without a teacher's; None if unknown.
    hours: Annotated[float, Field(ge=0)] | None = None
    started: str = ""  # when the run started, ISO 8601
    processor: str = ""  # the machine's processor
    cores: Count = 0  # cores that the run could use
    versions: dict[str, str] = {}  # versions of the libraries
    init: Weights | None = None  # the weights that training started from; None for random ones
    teachers: Teachers | None = None  # what it was distilled from; None if it was not

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests that identify the data: with votes, and without."""
        return tuple(digest for digest in (self.fingerprint, self.faces) if digest)

    @property
    def weights_fitted(self) -> bool:
        """Whether an ensemble's weights were fitted."""
        return "weights and temperature" in self.fitted.values()

    @property
    def has_fer2013_faces(self) -> bool:
        """Whether the faces are FER2013's, which labels of that name do not prove.

        FER2013 with PrivateTest, or as picture files, has another digest: then its splits' sizes decide.
        """
        sizes = self.training in _FER2013_TRAINING and self.validation == _FER2013_PUBLIC
        named = (self.trained_on, self.selected_on) == ("Training", "PublicTest")
        return _FER2013_FACES in self.digests or (sizes and named)


@dataclass(frozen=True, kw_only=True)  # not a BaseModel, so that dataclasses.asdict reaches it in reports
class Metric:
    """The figures of a model on one split, with one test-time augmentation and one set of labels.

    They are rounded to six digits.
    Of an ensemble, ``nll`` and ``ece`` are those of the file; every other figure is of ensembles that were
    fitted without the measured face (out of fold), as far as anything was fitted.

    Attributes:
        split: The split.
        tta: The test-time augmentation.
        labels: ``fer2013``, ``ferplus majority``, ``ferplus argmax``, a user's taxonomy, or for the output
            ``basic``: ``basic`` (FER2013's labels), ``basic majority`` (FER+'s without contempt).
        without_leaks: Whether duplicates of training faces were left out.
        n: Number of faces.
        accuracy: In 0..1.
        interval: 95 % Wilson interval of the accuracy.
        macro_f1: In 0..1.
        nll: Negative log-likelihood in nats.
        ece: Expected calibration error, 0..1.
        nll_out_of_fold: NLL under fits that had not seen the measured face; None if not measured.
        ece_out_of_fold: ECE under the same.
        recall: By label; None for a label without faces.
        fit: What was fitted of an ensemble; None for a network.
    """

    split: str
    tta: TtaMode
    labels: str
    without_leaks: bool = False
    n: Annotated[int, Field(ge=1)]
    accuracy: Share
    interval: tuple[Share, Share]
    macro_f1: Share
    nll: Nats
    ece: Share
    nll_out_of_fold: Nats | None = None
    ece_out_of_fold: Share | None = None
    recall: dict[str, Share | None] = Field(default_factory=dict)
    fit: Fit | None = None


class _Model(_Record):
    """What is recorded of a network in a file of its own and of a member of an ensemble alike."""

    name: Annotated[str, Field(min_length=1)]
    version: str = "1"
    architecture: str
    parameters: Count = 0
    mmac: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    recipe: dict[str, Any] = {}
    training: Provenance = Provenance()
    metrics: tuple[Metric, ...] = ()


class MemberInfo(_Model):
    """A network of an ensemble."""

    sha256: str  # digest of the network's own file
    # Its weight by taxonomy, for the taxonomies that it has.
    weights: dict[str, Annotated[float, Field(ge=0, le=1)]]


class Parity(_Record):
    """How far a file's predictions are from the float32 Keras network's."""

    largest_difference: float  # of a probability
    same_label: Share  # share of faces with the same label
    faces: Count  # number of compared faces


class Join(_Record):
    """How an output joins two heads; w, c and T were fitted together.

    Its probabilities are ``softmax((w_1 log p_1 + w_2 log p_2 - c) / T)``: a weighted geometric mean of the
    heads' probabilities with a correction of each label's prior, renormalised. A label that only one head has
    is left out.
    """

    weights: Annotated[dict[str, Share], Field(min_length=2)]  # w by head; they sum to one
    offsets: tuple[Nats, ...]  # c by label, in nats; they sum to zero
    # Share of the FER+ taggers in the label distributions it was fitted to; the rest is the label.
    votes: Share
    # Faces were weighted so that labels are as frequent as this power of their frequency.
    prior_exponent: Share


class Coverage(_Record):
    """The error among the faces whose confidence reaches a threshold, on one split."""

    split: str
    # The labels that count as right, as in :class:`Metric`, or ``labels and votes``: then the error is the
    # share of annotators who disagree.
    labels: str
    n: Annotated[int, Field(ge=1)]  # number of faces
    thresholds: Annotated[tuple[Share, ...], Field(min_length=1)]  # rising confidences
    coverage: tuple[Share, ...]  # share of the faces that reach each
    error: tuple[Share, ...]  # share of these that are wrong

    @model_validator(mode="after")
    def _check_lengths(self) -> Coverage:
        if not len(self.thresholds) == len(self.coverage) == len(self.error):
            raise ValueError("thresholds, coverage and error must have the same length")
        return self

    def threshold_for(self, max_error: float) -> float:
        """Return the smallest threshold from which on the error is at most ``max_error``.

        Raises:
            ModelFileError: If there is none.
        """
        found = None
        for threshold, error in zip(reversed(self.thresholds), reversed(self.error), strict=True):
            if error > max_error:
                break
            found = threshold
        if found is None:
            raise ModelFileError(
                f"no confidence has an error of {max_error:g} or less on {self.split}; the smallest error is "
                f"{self.error[-1]:.3f}, at confidence {self.thresholds[-1]:.2f}"
            )
        return found


class QualityCurve(_Record):
    """The temperature that calibrates an output on faces of lower quality."""

    # ``sharpness`` or ``brightness`` of :class:`ferkit.recognize.quality.Quality`.
    measure: Literal["sharpness", "brightness"]
    values: Annotated[tuple[float, ...], Field(min_length=1)]  # rising values of the measure
    # T at each of them, from 1 on and falling; between them T is interpolated.
    temperatures: tuple[Annotated[float, Field(ge=1, allow_inf_nan=False)], ...]

    @model_validator(mode="after")
    def _check_lengths(self) -> QualityCurve:
        if len(self.values) != len(self.temperatures):
            raise ValueError("values and temperatures must have the same length")
        return self

    def at(self, value: float) -> float:
        """Return the temperature at a value of the measure."""
        return float(np.interp(value, self.values, self.temperatures))


class HeadInfo(_Record):
    """One output of a model.

    Attributes:
        id: The taxonomy's id, and the output's name.
        labels: Label of column k at position k.
        temperature: T by which the logits were divided; the logits are T·log p, up to a constant.
        cam: Whether the graph has class activation maps for it.
        prior: Frequency of each label that the probabilities presume: that of the training labels, or of the
            faces a join was fitted to; empty if unknown.
        join: How it is computed from other outputs; None for a head of the network.
        coverage: The error by confidence; None if it was not measured.
        quality: Temperatures for blurred and dark faces, beside ``temperature``, which is in the graph.
    """

    id: str
    labels: tuple[str, ...]
    temperature: Positive = 1.0
    cam: bool = False
    prior: tuple[Share, ...] = ()
    join: Join | None = None
    coverage: Coverage | None = None
    quality: tuple[QualityCurve, ...] = ()

    @model_validator(mode="after")
    def _check_labels(self) -> HeadInfo:
        try:
            Taxonomy(self.id, self.labels)
        except TaxonomyError as error:
            raise ValueError(str(error)) from error
        if len(self.prior) not in (0, len(self.labels)):
            raise ValueError(f"a prior needs {len(self.labels)} frequencies, not {len(self.prior)}")
        if self.join is not None and len(self.join.offsets) != len(self.labels):
            raise ValueError(f"a join needs {len(self.labels)} offsets, not {len(self.join.offsets)}")
        return self

    @property
    def taxonomy(self) -> Taxonomy:
        """The label set."""
        return Taxonomy(self.id, self.labels)


class ModelInfo(_Model):
    """The metadata of a model file.

    Attributes:
        format_version: Version of this contract.
        name: Name of the model.
        version: Version of the model.
        architecture: Name in the registry of architectures, or ``ensemble``.
        taxonomies: The outputs.
        default_taxonomy: Id of the output that is used when none is named.
        input_size: Side S of ``face`` in pixels.
        view_size: Side that the network sees; where it is smaller than S, the graph cuts out the middle.
        crops: How faces are cut from pictures, by the detector that finds them; see :meth:`crop_for`.
        parameters: Number of trained values and of batch normalisation's moving statistics.
        mmac: Multiply-accumulates for one face, in millions.
        recipe: The recipe of the training run; empty for an ensemble.
        training: What it was trained, selected and fitted on.
        metrics: Measured figures.
        parity: Difference from the Keras network; None for an ensemble.
        precision: Of the stored weights: ``float32``, ``float16``, ``mixed`` or ``int8``.
        licence: Of the weights.
        created: ISO 8601.
        ferkit_version: Version that wrote the file.
        members: The networks of an ensemble.
        notes: Free text.
    """

    format_version: Literal[2] = FORMAT_VERSION
    taxonomies: Annotated[tuple[HeadInfo, ...], Field(min_length=1)]
    default_taxonomy: str
    input_size: Annotated[int, Field(ge=1, le=4096)] = 48
    view_size: Annotated[int, Field(ge=1)] = 48
    crops: Annotated[dict[str, CropGeometry], Field(min_length=1)] = dict(FER2013_CROPS)
    parity: Parity | None = None
    precision: str = "float32"
    licence: str = ""
    created: str = ""
    ferkit_version: str = ""
    members: tuple[MemberInfo, ...] = ()
    notes: str = ""

    @model_validator(mode="before")
    @classmethod
    def _read_one_crop(cls, data: Any) -> Any:
        """Read metadata with one geometry, ``crop``, which is that of CenterFace."""
        if isinstance(data, dict) and "crop" in data and "crops" not in data:
            crop = CropGeometry.model_validate(data["crop"])
            own = {} if crop == FER2013_CROPS["centerface"] else {"crops": {"centerface": crop}}
            return {key: value for key, value in data.items() if key != "crop"} | own
        return data

    @model_validator(mode="after")
    def _check_heads(self) -> ModelInfo:
        ids = [head.id for head in self.taxonomies]
        if len(set(ids)) != len(ids):
            raise ValueError(f"taxonomies must have distinct ids, not {ids}")
        if self.default_taxonomy not in ids:
            raise ValueError(f"default_taxonomy must be one of {ids}, not {self.default_taxonomy!r}")
        for head in self.taxonomies:
            if absent := set(head.join.weights if head.join else ()) - set(ids):
                raise ValueError(
                    f"{head.id} joins {', '.join(sorted(absent))}, which the model does not have"
                )
        if self.view_size > self.input_size:
            raise ValueError(f"view_size {self.view_size} exceeds input_size {self.input_size}")
        return self

    @property
    def ten_crop_shift(self) -> int:
        """Pixels by which ten-crop shifts: what the graph cuts off, or 2 where it sees the whole crop."""
        return (self.input_size - self.view_size) // 2 or 2

    def crop_for(self, detector: str) -> CropGeometry:
        """Return how faces of a detector are cut; one that is not known is taken for the first of them."""
        return self.crops.get(detector) or next(iter(self.crops.values()))

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        """The records of the model itself and of its members."""
        return (self.training, *(member.training for member in self.members))

    def head(self, taxonomy: str | None = None) -> HeadInfo:
        """Return the output of a taxonomy, the default one if None.

        Raises:
            TaxonomyError: If the model has no such output.
        """
        wanted = self.default_taxonomy if taxonomy is None else taxonomy
        for head in self.taxonomies:
            if head.id == wanted:
                return head
        raise TaxonomyError(
            f"model {self.name!r} has no taxonomy {wanted!r}; "
            f"it has {', '.join(head.id for head in self.taxonomies)}"
        )


def write_model(model: bytes, info: ModelInfo, path: str | os.PathLike[str]) -> None:
    """Write a model file atomically.

    Metadata that an earlier :func:`write_model` left in ``model``, a serialised ONNX model, are replaced.

    Raises:
        ModelFileError: If ``model`` is no ONNX model.
        OutputError: If the file cannot be written.
    """
    try:
        content = onnxbytes.with_metadata(model, {INFO_KEY: info.model_dump_json(), DIGEST_KEY: _NO_DIGEST})
    except onnxbytes.MalformedError as error:
        raise ModelFileError(f"cannot write {path}: the model is no ONNX graph: {error}") from error
    # The digest is the last entry, so its characters are the last of the file.
    digest = hashlib.sha256(content).hexdigest().encode()
    files.write_bytes(path, content[: -len(digest)] + digest)


def read_model(source: str | os.PathLike[str] | bytes) -> tuple[bytes, ModelInfo]:
    """Read and verify a model file, or its bytes; return the bytes, ready for a session, and the metadata.

    Raises:
        ModelFileError: If the file cannot be read, is no ONNX file, has no metadata of ferkit, has metadata
            of another format version, or is damaged.
    """
    name = "the model" if isinstance(source, bytes) else os.fspath(source)
    content = source if isinstance(source, bytes) else _read(Path(source))
    try:
        found = [e for e in onnxbytes.metadata(content) if e[0] in (INFO_KEY, DIGEST_KEY)]
    except onnxbytes.MalformedError as error:
        raise ModelFileError(f"{name} is no ONNX file, or is damaged: {error}") from error
    if not found:
        raise ModelFileError(
            f"{name} is an ONNX file without ferkit's metadata, so its labels and input are unknown. "
            "Write model files with `ferkit export`"
        )
    entries = {key: value for key, value, _ in found}
    if len(found) != 2 or len(entries) != 2 or not _digest_fits(content, entries[DIGEST_KEY]):
        raise ModelFileError(
            f"{name} is damaged: its content does not match its digest. Fetch or export it again"
        )
    text = content[entries[INFO_KEY].value : entries[INFO_KEY].end]
    return content, _parse_info(text, name)


def _digest_fits(content: bytes, digest: onnxbytes.Field) -> bool:
    state = hashlib.sha256(memoryview(content)[: digest.value])
    state.update(_NO_DIGEST.encode())
    state.update(memoryview(content)[digest.end :])
    return state.hexdigest().encode() == content[digest.value : digest.end]


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ModelFileError(f"{path} is a folder; name the model file in it")
        if path.stat().st_size > _MAX_BYTES:
            raise ModelFileError(f"{path} is larger than {_MAX_BYTES >> 20} MiB; it is no model of ferkit")
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot read model {path}: {error.strerror or error}") from error


def _parse_info(text: bytes, name: str) -> ModelInfo:
    try:
        return ModelInfo.model_validate_json(text)
    except ValidationError as error:
        problems = {".".join(map(str, e["loc"])): e for e in error.errors()}
    if version := problems.get("format_version"):
        raise ModelFileError(
            f"{name} has format version {version['input']!r}; this ferkit reads version {FORMAT_VERSION}. "
            "Update ferkit, or export the model again"
        )
    where, problem = next(iter(problems.items()))
    raise ModelFileError(f"{name} has invalid metadata: {where or 'all'}: {problem['msg']}")


def resolve_model(model: str | os.PathLike[str] | None = None) -> Path:
    """Return the file of a model: the default one for None, a model by name, or a file.

    Raises:
        ModelFileError: If there is none.
    """
    named = DEFAULT if model is None else model
    if isinstance(named, str) and (found := find_model(named)) is not None:
        return found
    path = Path(named)
    if model is None or not os.path.exists(path):  # noqa: PTH110
        raise ModelFileError(
            f"no model {os.fspath(named)!r}: it is neither a file nor a model's name; {held_models()}"
        )
    return path
