"""From crops to probabilities: the ONNX Runtime session around a model file, in batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.crops import TtaMode, tta_views
from ferkit.core.errors import ImageError, ModelFileError
from ferkit.core.modelfile import CAM_PREFIX, INPUT, HeadInfo, ModelInfo, read_model, resolve_model
from ferkit.core.runtime import first_line, open_session, runtime_errors

_TOLERANCE = 1e-2  # on the sum of a row; int8 and float16 models round


class FaceClassifier:
    """A model file, ready to predict. Safe to use from several threads at once.

    Args:
        model: Name of a model, a model file, its bytes, or None for the default model.
        providers: ONNX Runtime execution providers in order of preference, for instance
            ``["CUDAExecutionProvider"]``; the CPU by default.
        threads: Threads of one call; by default the cores that this process may use.

    Raises:
        ModelFileError: If the file is missing or damaged, or its graph contradicts its metadata.
        MissingDependencyError: If ONNX Runtime, or a provider, is not available.

    Example:
        >>> import numpy as np
        >>> FaceClassifier().predict(np.zeros((2, 48, 48), np.uint8))["fer2013"].shape
        (2, 7)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | None = None,
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        source = model if isinstance(model, bytes) else resolve_model(model)
        content, self._info = read_model(source)
        self._name = self._info.name if isinstance(source, bytes) else str(source)
        self._session = open_session(
            content, self._name, fail=ModelFileError, providers=providers, threads=threads
        )
        self._check_graph()

    @property
    def info(self) -> ModelInfo:
        """The model's metadata."""
        return self._info

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers in use."""
        return tuple(self._session.get_providers())

    def predict(
        self,
        crops: NDArray[np.uint8],
        *,
        tta: TtaMode = "none",
        batch_size: int = 64,
        taxonomies: Sequence[str] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Return calibrated probabilities.

        Args:
            crops: uint8 ``[N, S, S]``, grayscale, 0..255, S as ``info.input_size``; N may be 0.
            tta: ``none``, ``flip`` or ``ten-crop``: the mean of the probabilities over the views.
            batch_size: Crops that go through the network at once; it does not change the result.
            taxonomies: Ids of the wanted outputs; all by default.

        Returns:
            For each taxonomy id float32 ``[N, K]``; rows sum to one.

        Raises:
            ImageError: If the crops do not have that shape and dtype.
            TaxonomyError: If the model has no such output.
            ModelFileError: If an output does not hold probabilities.
        """
        heads = (
            list(self._info.taxonomies)
            if taxonomies is None
            else [self._info.head(taxonomy) for taxonomy in taxonomies]
        )
        self._check_crops(crops, batch_size)
        if not heads or not len(crops):  # to ONNX Runtime no names are all
            return {head.id: np.zeros((0, len(head.labels)), np.float32) for head in heads}
        names, batches = [head.id for head in heads], []
        for start in range(0, len(crops), batch_size):
            batch = crops[start : start + batch_size]
            views = tta_views(batch, tta, shift=self._info.ten_crop_shift)
            outputs = [self._run(names, view) for view in views]
            for output in outputs:
                self._check_probabilities(heads, output)
            batches.append(_combined(outputs, np.mean))
        joined = _combined(batches, np.concatenate)
        return dict(zip(names, joined, strict=True))

    def cams(
        self, crops: NDArray[np.uint8], taxonomy: str | None = None, *, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Return class activation maps: float32 ``[N, K, h, w]``, each place's share in the logit of label k.

        ``taxonomy`` is the default one if None; the other arguments are those of :meth:`predict`.

        Raises:
            ImageError: As :meth:`predict`.
            TaxonomyError: If the model has no such output.
            ModelFileError: If the model has no maps for it.
        """
        head = self._info.head(taxonomy)
        self._check_crops(crops, batch_size)
        if not head.cam:
            raise ModelFileError(
                f"model {self._info.name!r} has no class activation maps for {head.id!r}; "
                "architectures that end in global average pooling have them"
            )
        name = CAM_PREFIX + head.id
        # Without a crop, a black one is used to learn the shape of the maps.
        given = crops if len(crops) else np.zeros((1, *crops.shape[1:]), np.uint8)
        parts = [
            self._run([name], given[start : start + batch_size])[0]
            for start in range(0, len(given), batch_size)
        ]
        if any(part.ndim != 4 or part.shape[1] != len(head.labels) for part in parts):
            raise ModelFileError(
                f"output {name!r} of {self._name} must be [N, {len(head.labels)}, h, w]. "
                f"Received: {list(parts[0].shape)}"
            )
        return np.concatenate(parts)[: len(crops)]

    def _run(self, names: list[str], crops: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        try:
            outputs: list[NDArray[np.float32]] = self._session.run(
                names, {INPUT: np.ascontiguousarray(crops)}
            )
        except runtime_errors() as error:
            raise ModelFileError(f"{self._name} does not run: {first_line(error)}") from error
        return outputs

    def _check_crops(self, crops: NDArray[np.uint8], batch_size: int) -> None:
        size = self._info.input_size
        if not isinstance(crops, np.ndarray) or crops.dtype != np.uint8 or crops.shape[1:] != (size, size):
            received = f"{crops.dtype} {list(crops.shape)}" if isinstance(crops, np.ndarray) else type(crops)
            raise ImageError(
                f"model {self._info.name!r} takes crops as uint8 [N, {size}, {size}], grayscale 0..255. "
                f"Received: {received}"
            )
        if batch_size < 1:
            raise ImageError(f"batch_size must be at least 1. Received: {batch_size}")

    def _check_probabilities(self, heads: Sequence[HeadInfo], outputs: Sequence[NDArray[np.float32]]) -> None:
        for head, output in zip(heads, outputs, strict=True):
            if not (
                output.ndim == 2
                and output.shape[1] == len(head.labels)
                and output.min() >= 0
                and abs(output.sum(axis=1) - 1).max() < _TOLERANCE
            ):
                raise ModelFileError(
                    f"output {head.id!r} of {self._name} holds no probabilities over {len(head.labels)} "
                    "labels (logits?). Export the model again with `ferkit export`"
                )

    def _check_graph(self) -> None:
        size = self._info.input_size
        inputs = {i.name: (i.type, list(i.shape)) for i in self._session.get_inputs()}
        kind, shape = inputs.get(INPUT, ("", []))
        if set(inputs) != {INPUT} or kind != "tensor(uint8)" or shape[1:] != [size, size]:
            raise ModelFileError(
                f"the graph of {self._name} must take one input {INPUT!r}, uint8 [N, {size}, {size}]. "
                f"Received: {inputs}"
            )
        if isinstance(shape[0], int):
            raise ModelFileError(
                f"the graph of {self._name} takes only batches of {shape[0]}; N must be free"
            )
        outputs = {output.name: output for output in self._session.get_outputs()}
        for head in self._info.taxonomies:
            if absent := {head.id, *([CAM_PREFIX + head.id] if head.cam else [])} - set(outputs):
                raise ModelFileError(
                    f"the metadata of {self._name} name output {', '.join(map(repr, sorted(absent)))}; "
                    f"its graph has {', '.join(outputs)}"
                )
            kind, shape = outputs[head.id].type, outputs[head.id].shape
            columns = shape[1] if len(shape) == 2 else 0
            if kind != "tensor(float)" or (isinstance(columns, int) and columns != len(head.labels)):
                raise ModelFileError(
                    f"the metadata of {self._name} give output {head.id!r} {len(head.labels)} columns; "
                    f"in its graph it is {kind} {shape}"
                )


def _combined(
    parts: Sequence[list[NDArray[np.float32]]], join: Callable[..., Any]
) -> list[NDArray[np.float32]]:
    """Return the outputs of one part as they are, those of several joined output by output."""
    return parts[0] if len(parts) == 1 else [join(one, axis=0) for one in zip(*parts, strict=True)]
