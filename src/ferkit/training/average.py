"""The mean of two networks' weights, such as those before and after fine-tuning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import TrainingError
from ferkit.training.runs import Run
from ferkit.training.state import network_arrays
from ferkit.training.statistics import reestimate_batch_norm

FACES = 8192
"""Training faces from which the statistics of batch normalisation are estimated again."""


def average_runs(run: Run, other: Run, share: float, faces: NDArray[np.uint8]) -> Run:
    """Return a run without a folder, with the weighted mean of two networks' weights (Wortsman et al. 2022).

    Fine-tuning on other faces costs accuracy on those of before. Where both networks have the same start, the
    mean of their weights is a network that keeps most of both. Its statistics of batch normalisation are
    estimated again.

    Args:
        run: The run after fine-tuning.
        other: The weights before it.
        share: Of ``run`` in the mean, between 0 and 1.
        faces: Training faces, uint8 ``[N, S, S]``.

    Raises:
        TrainingError: If the share is out of range, or the networks or their heads differ.

    References:
        Wortsman et al. 2022, *Robust fine-tuning of zero-shot models*.
    """
    if not 0 < share < 1:
        raise TrainingError(f"the share of a run in a mean lies between 0 and 1. Received: {share}")
    shapes, expected = ({name: a.shape for name, a in one.arrays.items()} for one in (other, run))
    if shapes != expected or other.taxonomies != run.taxonomies:
        raise TrainingError(
            "weights are averaged over networks of one architecture with the same heads; these differ"
        )
    arrays = {
        name: (share * array + (1 - share) * other.arrays[name].astype(np.float32)).astype(np.float32)
        for name, array in run.arrays.items()
    }
    network = replace(run, arrays=arrays).network()
    reestimate_batch_norm(network, faces, FACES, seed=0)
    heads = tuple(taxonomy.id for taxonomy in run.taxonomies)
    return replace(run, folder=None, arrays=network_arrays(network, heads), temperatures={})
