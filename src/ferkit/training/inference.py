"""Predictions of a Keras network, as its ONNX file computes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.crops import TtaMode, tta_views


def predict_logits(
    model: Any, images: NDArray[np.uint8], batch_size: int = 256
) -> dict[str, NDArray[np.float32]]:
    """Return float32 logits ``[N, K]`` by taxonomy id for uint8 faces ``[N, S, S]``."""
    if not len(images):
        return {head: np.zeros((0, out.shape[-1]), np.float32) for head, out in model.output.items()}
    predicted = model.predict(images[..., None].astype(np.float32), batch_size=batch_size, verbose=0)
    return {head: np.asarray(logits, np.float32) for head, logits in predicted.items()}


def predict_probabilities(
    model: Any,
    images: NDArray[np.uint8],
    *,
    tta: TtaMode = "none",
    temperatures: Mapping[str, float] | None = None,
    shift: int = 2,
) -> dict[str, NDArray[np.float32]]:
    """Return probabilities float32 ``[N, K]`` by taxonomy id, averaged over the tta's views.

    Images are uint8 ``[N, S, S]``, temperatures by taxonomy id (1 where absent); ``shift`` is that of ten-
    crop in pixels.
    """
    from scipy.special import softmax

    sums: dict[str, NDArray[np.float32]] = {}
    seen = tta_views(images, tta, shift=shift)
    for view in seen:
        for head, logits in predict_logits(model, view).items():
            p = softmax(logits / np.float32((temperatures or {}).get(head, 1.0)), axis=-1)
            sums[head] = sums[head] + p if head in sums else p
    return {head: total / np.float32(len(seen)) for head, total in sums.items()}
