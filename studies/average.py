"""Weights between those before and after fine-tuning: what do accuracy and robustness cost each other?

    python studies/average.py standard runs/photos --data fer2013.csv.gz --votes fer2013new.csv

A network that is fine-tuned on degraded faces is better on such faces and worse on FER2013's own. Both
networks have the same start, so the mean of their weights is a network as well (Wortsman et al. 2022, *Robust
fine-tuning of zero-shot models*). For each share of the second network the statistics of batch normalisation
are estimated again from training faces; FER2013's and FER+'s accuracy are measured on PublicTest, and
FER2013's on every third face of it, degraded in seven ways at the middle step. ``--save RUN --share 0.3``
writes a copy of the second run with the weights of one share, for ``ferkit export``. Writes
interpolation.csv.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core import files
from ferkit.core.taxonomy import FER2013, FERPLUS
from ferkit.data import FaceDataset, load_data
from ferkit.data.ferplus import majority_targets
from ferkit.evaluation.degrade import KINDS, degraded
from ferkit.models import build_model
from ferkit.training.inference import predict_probabilities
from ferkit.training.runs import Run, RunFolder, load_training_weights, weights_meta
from ferkit.training.state import load_network_arrays, network_arrays, write_archive
from ferkit.training.statistics import reestimate_batch_norm

FACES = 8192
"""Training faces for the statistics."""
EVERY = 3
"""Of so many faces one is degraded."""
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)


def average(before: Run, after: Run, share: float, faces: NDArray[np.uint8]) -> Any:
    """Return the network with the weighted mean of both runs' weights; ``share`` is that of ``after``."""
    recipe, size = after.recipe, after.input_size
    heads = {taxonomy.id: len(taxonomy) for taxonomy in after.taxonomies}
    network = build_model(recipe.model.name, heads, input_size=size, **recipe.model.params)
    mean = {
        name: ((1 - share) * before.arrays[name] + share * array).astype(np.float32)
        for name, array in after.arrays.items()
    }
    load_network_arrays(network, tuple(heads), mean, "the mean")
    reestimate_batch_norm(network, faces, FACES, seed=0)
    return network


def measure(network: Any, dataset: FaceDataset) -> dict[str, float]:
    """Return accuracies in % on PublicTest, as it is and degraded, and the loss on FER2013's labels."""
    p = predict_probabilities(network, dataset.images)
    labels, tagged = dataset.labels, majority_targets(dataset.votes)
    right = p[FER2013.id].argmax(axis=1) == labels
    some = dataset.select(np.arange(0, len(dataset), EVERY))
    clean = np.ascontiguousarray(some.images)
    row = {
        "fer2013": 100 * float(right.mean()),
        "nll": float(-np.log(p[FER2013.id][np.arange(len(labels)), labels]).mean()),
        "ferplus": 100 * float((p[FERPLUS.id].argmax(axis=1) == tagged[0])[tagged[1]].mean()),
    }
    for kind in KINDS:
        poor = degraded(clean, kind, kind.steps[len(kind.steps) // 2])
        found = predict_probabilities(network, poor)[FER2013.id].argmax(axis=1)
        row[kind.name] = 100 * float((found == some.labels).mean())
    row["degraded"] = float(np.mean([row[kind.name] for kind in KINDS]))
    return {name: round(figure, 4) for name, figure in row.items()}


def save(network: Any, after: Run, out: Path, facts: dict[str, Any]) -> None:
    """Write a copy of the run ``after`` with the network's weights.

    Raises:
        SystemExit: If ``after`` is no run folder.
    """
    if after.folder is None:
        raise SystemExit("error: AFTER must be a run folder, whose history the saved run has too")
    folder, run = RunFolder(out), RunFolder(after.folder)
    shutil.copytree(run.path, out, ignore=shutil.ignore_patterns("checkpoint*", "teacher*", ".lock"))
    heads = tuple(taxonomy.id for taxonomy in after.taxonomies)
    meta = weights_meta(after.recipe, after.taxonomies, after.input_size)
    write_archive(folder.weights, network_arrays(network, heads), meta)
    folder.write_facts({**run.read_facts(), "average": facts})


def main() -> None:
    """Measure every share, or save the weights of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("before", help="training weights before fine-tuning: a run, a file, or a name")
    parser.add_argument("after", help="training weights after it")
    parser.add_argument("--data", required=True)
    parser.add_argument("--votes", required=True)
    parser.add_argument("--out", type=Path, default=Path("results/photos"))
    parser.add_argument("--save", type=Path, help="write the run of --share to this folder")
    parser.add_argument("--share", type=float, default=0.5)
    given = parser.parse_args()
    before, after = (load_training_weights(source) for source in (given.before, given.after))
    dataset = load_data(given.data, votes=given.votes)
    faces = dataset.of_split("Training").images
    if given.save is not None:
        network = average(before, after, given.share, faces)
        save(network, after, given.save, {"before": given.before, "share_after": given.share})
        return
    rows = []
    for share in SHARES:
        rows.append(
            {"share": share, **measure(average(before, after, share, faces), dataset.of_split("PublicTest"))}
        )
        print(rows[-1], flush=True)
    files.write_csv(given.out / "interpolation.csv", list(rows[0]), rows)


if __name__ == "__main__":
    main()
