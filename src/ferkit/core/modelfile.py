"""The model contract: one ONNX file that describes itself, written, read and verified.

The graph takes ``face``, uint8 ``[N, S, S]`` (grayscale, 0..255), and does its own scaling. It has one output
per taxonomy, named by the taxonomy's id: float32 ``[N, K]``, calibrated probabilities. Where the
architecture gives them, ``cam_<taxonomy>`` are class activation maps, float32 ``[N, K, h, w]``. Everything
else is :class:`ModelInfo`, as JSON in the file's metadata under ``ferkit``; under ``ferkit.sha256`` stands
the SHA-256 of the file with these 64 characters replaced by zeros, so that a changed byte is noticed. (It
guards against damage, not against somebody who computes it anew.)
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ferkit.core import files, onnxbytes
from ferkit.core.crops import CropGeometry
from ferkit.core.errors import ModelFileError, TaxonomyError
from ferkit.core.taxonomy import Taxonomy
from ferkit.weights import DEFAULT, embedded_models, embedded_path

FORMAT_VERSION: Final = 1
INPUT = "face"
CAM_PREFIX = "cam_"
INFO_KEY = "ferkit"
DIGEST_KEY = "ferkit.sha256"

_NO_DIGEST = "0" * 64
_MAX_BYTES = 1 << 30

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class HeadInfo(BaseModel):
    """One output of a model.

    Attributes:
        id: The taxonomy's id, and the output's name.
        labels: Label of column k at position k.
        temperature: T by which the logits were divided; the logits are T·log p, up to a constant.
        cam: Whether the graph has class activation maps for it.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    labels: tuple[str, ...]
    temperature: Positive = 1.0
    cam: bool = False

    @model_validator(mode="after")
    def _check_labels(self) -> HeadInfo:
        try:
            Taxonomy(self.id, self.labels)
        except TaxonomyError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def taxonomy(self) -> Taxonomy:
        """The label set."""
        return Taxonomy(self.id, self.labels)


class ModelInfo(BaseModel):
    """What a model file says about itself.

    Attributes:
        format_version: Version of this contract.
        name: Name of the model.
        version: Version of the model.
        architecture: Name in the registry of architectures, or ``ensemble``.
        taxonomies: The outputs.
        default_taxonomy: Id of the one that is used when none is named.
        input_size: Side S of ``face`` in pixels.
        view_size: Side that the network sees; where smaller than S, the graph cuts the middle.
        crop: How faces are cut from pictures.
        parameters: Numbers in the network: what is trained, and the moving statistics of batch normalisation.
        mmac: Multiply-accumulates for one face, in millions.
        recipe: What decided the training run.
        data: Fingerprint, source and counts of the data.
        metrics: Measured figures, each with its protocol (split, TTA, labels).
        precision: Of the weights: ``float32``, ``float16`` or ``int8``.
        licence: Of the weights.
        created: ISO 8601.
        ferkit_version: Version that wrote the file.
        members: Of an ensemble: what is known of each member.
        notes: For people.
    """

    model_config = ConfigDict(frozen=True)

    format_version: Literal[1] = FORMAT_VERSION
    name: Annotated[str, Field(min_length=1)]
    version: str = "1"
    architecture: str
    taxonomies: Annotated[tuple[HeadInfo, ...], Field(min_length=1)]
    default_taxonomy: str
    input_size: Annotated[int, Field(ge=1, le=4096)] = 48
    view_size: Annotated[int, Field(ge=1)] = 48
    crop: CropGeometry = CropGeometry()
    parameters: Annotated[int, Field(ge=0)] = 0
    mmac: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    recipe: dict[str, Any] = {}
    data: dict[str, Any] = {}
    metrics: list[dict[str, Any]] = []
    precision: str = "float32"
    licence: str = ""
    created: str = ""
    ferkit_version: str = ""
    members: list[dict[str, Any]] = []
    notes: str = ""

    @model_validator(mode="after")
    def _check_heads(self) -> ModelInfo:
        ids = [head.id for head in self.taxonomies]
        if len(set(ids)) != len(ids):
            raise ValueError(f"taxonomies must have distinct ids, not {ids}")
        if self.default_taxonomy not in ids:
            raise ValueError(f"default_taxonomy must be one of {ids}, not {self.default_taxonomy!r}")
        if self.view_size > self.input_size:
            raise ValueError(f"view_size {self.view_size} exceeds input_size {self.input_size}")
        return self

    @property
    def ten_crop_shift(self) -> int:
        """Pixels by which ten-crop shifts: what the graph cuts off, or 2 where it sees the whole crop."""
        return (self.input_size - self.view_size) // 2 or 2

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
            f"model {self.name!r} does not answer in taxonomy {wanted!r}; "
            f"it has {', '.join(head.id for head in self.taxonomies)}"
        )


def write_model(model: bytes, info: ModelInfo, path: str | os.PathLike[str]) -> None:
    """Write a model file in one step.

    Args:
        model: A serialised ONNX model (``ModelProto.SerializeToString()``); metadata of an earlier
            :func:`write_model` in it is replaced.
        info: What the file says about itself.
        path: The file.

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
    """Read a model file and verify it.

    Args:
        source: The file, or its bytes.

    Returns:
        The bytes, ready for a session, and what they say about themselves.

    Raises:
        ModelFileError: If the file cannot be read, is no ONNX, has no metadata of ferkit, or is damaged.
    """
    name = "the model" if isinstance(source, bytes) else os.fspath(source)
    content = source if isinstance(source, bytes) else _read(Path(source))
    try:
        found = [e for e in onnxbytes.metadata(content) if e[0] in (INFO_KEY, DIGEST_KEY)]
    except onnxbytes.MalformedError as error:
        raise ModelFileError(f"{name} is no ONNX file, or a damaged one: {error}") from error
    entries = {key: value for key, _, value in found}
    if not entries:
        raise ModelFileError(
            f"{name} is an ONNX file without ferkit's metadata, so its labels and input are unknown. "
            "Write model files with `ferkit export`"
        )
    digest = entries.get(DIGEST_KEY)
    damaged = f"{name} is damaged: its content does not match its digest. Fetch or export it again"
    if len(found) != 2 or len(entries) != 2 or digest is None or digest.end - digest.value != len(_NO_DIGEST):
        raise ModelFileError(damaged)
    state = hashlib.sha256(memoryview(content)[: digest.value])
    state.update(_NO_DIGEST.encode())
    state.update(memoryview(content)[digest.end :])
    if state.hexdigest().encode() != content[digest.value : digest.end]:
        raise ModelFileError(damaged)
    return content, _parse_info(content[entries[INFO_KEY].value : entries[INFO_KEY].end], name)


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ModelFileError(f"{path} is a folder; name the model file in it")
        if path.stat().st_size > _MAX_BYTES:
            raise ModelFileError(
                f"{path} is larger than {_MAX_BYTES >> 20} MiB; it cannot be a model of ferkit"
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot read model {path}: {error.strerror or error}") from error


def _renamed(text: bytes) -> bytes:
    """Rename ``protocol`` and ``every_step`` in metadata; goes when the embedded files are written anew."""
    text = text.replace(b'"protocol":"single"', b'"tta":"none"').replace(b'"protocol":', b'"tta":')
    return text.replace(b'"every_step":', b'"online":')


def _parse_info(text: bytes, name: str) -> ModelInfo:
    try:
        return ModelInfo.model_validate_json(_renamed(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "metadata"
        if first["loc"] == ("format_version",):
            raise ModelFileError(
                f"{name} is of format version {first['input']!r}; this ferkit reads "
                f"version {FORMAT_VERSION}. Update ferkit, or export the model again"
            ) from error
        raise ModelFileError(f"{name} has metadata that does not fit: {where}: {first['msg']}") from error


def resolve_model(model: str | os.PathLike[str] | None = None) -> Path:
    """Return the file of a model: the embedded default for None, an embedded one by name, or a file.

    Raises:
        ModelFileError: If there is none.
    """
    if model is None:
        return embedded_path(DEFAULT)
    if isinstance(model, str) and model in embedded_models():
        return embedded_path(model)
    path = Path(model)
    if not path.exists():
        have = ", ".join(embedded_models()) or "none"
        raise ModelFileError(
            f"no model {os.fspath(model)!r}: it is no file, and no embedded model (embedded: {have})"
        )
    return path
