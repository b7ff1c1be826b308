"""Statistics of batch normalisation from unaugmented faces, after training on augmented ones."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

BATCH = 256


def reestimate_batch_norm(network: Any, images: NDArray[np.uint8], faces: int, seed: int) -> None:
    """Set the moving averages of every batch normalisation to the statistics of unaugmented faces.

    Rotated and zoomed faces are interpolated, so they are smoother than the faces that a network is used on,
    and so are the moving averages of training. Here the averages are taken over unaugmented faces, half of
    them mirrored ("precise batch normalisation", Wu & Johnson 2021, on images like those of the test as in
    Touvron et al. 2019), without dropout.

    The network is changed in place. ``images`` are the training faces, uint8 ``[N, S, S]``, of which as many
    as ``faces`` are used.
    """
    layers = list(network._flatten_layers(include_self=False, recursive=True))
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    drops = [layer for layer in layers if isinstance(layer, keras.layers.Dropout)]
    before = [norm.momentum for norm in norms], [drop.rate for drop in drops]
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(images))[:faces]
    mirrored = rng.random(len(rows)) < 0.5
    try:
        for drop in drops:
            drop.rate = 0.0
        done = 0
        for at in range(0, len(rows), BATCH):
            chosen = np.asarray(images[rows[at : at + BATCH]])
            side = mirrored[at : at + BATCH, None, None]
            batch = np.where(side, chosen[:, :, ::-1], chosen)[..., None].astype(np.float32)
            for norm in norms:
                norm.momentum = done / (done + len(batch))  # the mean over all faces so far
            network(batch, training=True)
            done += len(batch)
    finally:
        for norm, momentum in zip(norms, before[0], strict=True):
            norm.momentum = momentum
        for drop, rate in zip(drops, before[1], strict=True):
            drop.rate = rate
