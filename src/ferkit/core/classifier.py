"""From crops to probabilities: the ONNX Runtime session around a model file, in batches."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core import onnxbytes
from ferkit.core.crops import TtaMode, tta_views
from ferkit.core.errors import ImageError, ModelFileError
from ferkit.core.modelfile import CAM_PREFIX, INPUT, HeadInfo, ModelInfo, read_model, resolve_model
from ferkit.core.runtime import first_line, open_session, runtime_errors

_TOLERANCE = 1e-2  # on the sum of a row; int8 and float16 models round


class FaceClassifier:
    """A model file, ready to answer.

    Safe to use from several threads at once.

    Args:
        model: Name of an embedded model, a model file, its bytes, or None for the embedded default.
        providers: ONNX Runtime execution providers in order of preference, for instance
            ``["CUDAExecutionProvider"]``; the CPU by default.
        threads: Threads of one call; by default the cores this process may use.

    Raises:
        ModelFileError: If the file is missing, damaged, or its graph contradicts its metadata.
        MissingDependencyError: If a provider is not available here.
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
        self._open = partial(
            open_session, name=self._name, fail=ModelFileError, providers=providers, threads=threads
        )
        self._content = content
        self._maps: dict[str, Any] = {}
        self._lock = threading.Lock()
        # Class activation maps have sessions of their own: ONNX Runtime computes every node of a session,
        # fetched or not.
        self._session = self._open(onnxbytes.only_outputs(content, self._promised()))
        self._check_graph()

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself."""
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
            tta: ``none``, ``flip`` or ``ten-crop``: the mean of probabilities over the views.
            batch_size: Crops that go through the network at once; it does not change the result.
            taxonomies: Ids of the outputs that are wanted; by default all.

        Returns:
            For each taxonomy id float32 ``[N, K]``; rows sum to one.

        Raises:
            ImageError: If the crops do not have that shape and dtype.
            TaxonomyError: If the model has no such output.
            ModelFileError: If the model does not answer with probabilities.
        """
        heads = (
            list(self._info.taxonomies)
            if taxonomies is None
            else [self._info.head(taxonomy) for taxonomy in taxonomies]
        )
        self._check_crops(crops, batch_size)
        if not heads:  # ONNX Runtime takes no names for all of them
            return {}
        sums: dict[str, NDArray[np.float32]] = {
            head.id: np.zeros((len(crops), len(head.labels)), np.float32) for head in heads
        }
        names = [head.id for head in heads]
        for start in range(0, len(crops), batch_size):
            rows = slice(start, start + batch_size)
            shown = tta_views(crops[rows], tta, shift=self._info.ten_crop_shift)
            for view in shown:
                for head, answer in zip(heads, self._run(self._session, names, view), strict=True):
                    self._check_answer(head, answer)
                    sums[head.id][rows] += answer / np.float32(len(shown))
        return sums

    def cams(
        self, crops: NDArray[np.uint8], taxonomy: str | None = None, *, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Return class activation maps: float32 ``[N, K, h, w]``, how much each place speaks for label k.

        Args:
            crops: As in :meth:`predict`.
            taxonomy: Id of the output; by default the model's default.
            batch_size: As in :meth:`predict`.

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
        with self._lock:
            if name not in self._maps:
                self._maps[name] = self._open(onnxbytes.only_outputs(self._content, [name]))
        session = self._maps[name]
        # Without a crop, one is made up to learn the shape of the maps.
        given = crops if len(crops) else np.zeros((1, *crops.shape[1:]), np.uint8)
        parts = [
            self._run(session, [name], given[start : start + batch_size])[0]
            for start in range(0, len(given), batch_size)
        ]
        if any(part.ndim != 4 or part.shape[1] != len(head.labels) for part in parts):
            raise ModelFileError(
                f"output {name!r} of {self._name} must be [N, {len(head.labels)}, h, w]. "
                f"It is {list(parts[0].shape)}"
            )
        return np.concatenate(parts)[: len(crops)]

    def _run(self, session: Any, names: list[str], crops: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        try:
            answers: list[NDArray[np.float32]] = session.run(names, {INPUT: np.ascontiguousarray(crops)})
        except runtime_errors() as error:
            raise ModelFileError(f"{self._name} does not run: {first_line(error)}") from error
        return answers

    def _promised(self) -> list[str]:
        """Return the names of the heads, after checking that the graph has all that the metadata promises."""
        heads = [head.id for head in self._info.taxonomies]
        maps = [CAM_PREFIX + head.id for head in self._info.taxonomies if head.cam]
        outputs = onnxbytes.output_names(self._content)
        if absent := [name for name in heads + maps if name not in outputs]:
            raise ModelFileError(
                f"the metadata of {self._name} promises output {', '.join(map(repr, absent))}; "
                f"its graph has {', '.join(outputs)}"
            )
        return heads

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

    def _check_answer(self, head: HeadInfo, answer: NDArray[np.float32]) -> None:
        with np.errstate(invalid="ignore"):
            good = (
                answer.ndim == 2
                and answer.shape[1] == len(head.labels)
                and bool(np.all(answer >= 0))
                and bool(np.all(np.abs(answer.sum(axis=1) - 1) < _TOLERANCE))
            )
        if not good:
            raise ModelFileError(
                f"output {head.id!r} of {self._name} holds no probabilities over {len(head.labels)} labels "
                "(logits?). Export the model again with `ferkit export`"
            )

    def _check_graph(self) -> None:
        size = self._info.input_size
        inputs = {i.name: (i.type, list(i.shape)) for i in self._session.get_inputs()}
        kind, shape = inputs.get(INPUT, ("", []))
        if set(inputs) != {INPUT} or kind != "tensor(uint8)" or shape[1:] != [size, size]:
            raise ModelFileError(
                f"the graph of {self._name} must take one input {INPUT!r}, uint8 [N, {size}, {size}]. "
                f"It takes {inputs}"
            )
        if isinstance(shape[0], int):
            raise ModelFileError(
                f"the graph of {self._name} takes only batches of {shape[0]}; N must be free"
            )
        for output in self._session.get_outputs():
            labels = len(self._info.head(output.name).labels)
            columns = output.shape[1] if len(output.shape) == 2 else 0
            if output.type != "tensor(float)" or (isinstance(columns, int) and columns != labels):
                raise ModelFileError(
                    f"the metadata of {self._name} promises output {output.name!r} with {labels} columns; "
                    f"in its graph it is {output.type} {output.shape}"
                )
