"""How much detail augmentation removes from faces, and its effect on batch normalisation statistics.

    python studies/sharpness.py --data fer2013.csv.gz --runs runs/base runs/small

First, the power of FER2013's faces that is left after augmentation, by bands of spatial frequency. Second,
the accuracy and loss of finished runs with the moving averages of training, and with statistics re-estimated
on 8,192 training faces: augmented as in training, with cubic interpolation, in brightness and contrast only,
and unchanged. No weight changes. Writes sharpness.json and sharpness.md.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.augment import PRESETS, AugmentConfig, Augmenter
from ferkit.core import files
from ferkit.core.errors import TrainingError
from ferkit.data import load_data
from ferkit.evaluation.metrics import negative_log_likelihood
from ferkit.training import runs, state
from ferkit.training.inference import predict_probabilities
from ferkit.training.statistics import reestimate_batch_norm

FACES = 8192
BANDS = (0.05, 0.15, 0.25, 0.35, 0.45)
"""Edges of the bands in cycles per pixel; 0.5 is the Nyquist frequency."""

STILL: Mapping[str, Any] = {"rotation": 0.0, "shift": 0.0, "zoom": (1.0, 1.0), "stretch": 0.0}
DARK: Mapping[str, Any] = {"brightness": 0.0, "contrast": 0.0}
LEFT_OUT: Mapping[str, Any] = {"erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}


def spectrum(faces: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean power of faces ``[N, S, S]`` in each band, under a Hann window."""
    side = faces.shape[1]
    window = np.outer(np.hanning(side), np.hanning(side))
    centred = faces - faces.mean(axis=(1, 2), keepdims=True)
    power = (np.abs(np.fft.fft2(centred * window)) ** 2).mean(axis=0)
    across = np.fft.fftfreq(side)
    distance = np.hypot(across[:, None], across[None])
    return np.array(
        [power[(distance >= low) & (distance < high)].mean() for low, high in itertools.pairwise(BANDS)]
    )


def augmented(faces: NDArray[np.uint8], config: AugmentConfig, seed: int = 1) -> NDArray[np.float32]:
    """Return faces ``[N, S, S]``, augmented."""
    augmenter = Augmenter(config, seed=seed)
    parts = [augmenter(faces[at : at + 256, ..., None], {})[0] for at in range(0, len(faces), 256)]
    return np.concatenate([np.asarray(part)[..., 0] for part in parts])


def kept_detail(faces: NDArray[np.uint8]) -> dict[str, list[float]]:
    """Return the share of each band's power left by ``modern``, without brightness and contrast."""
    whole = spectrum(faces.astype(np.float64))
    return {
        kind: [
            float(v)
            for v in spectrum(
                augmented(faces, PRESETS["modern"].model_copy(update={**DARK, "interpolation": kind}))
            )
            / whole
        ]
        for kind in ("bilinear", "cubic")
    }


def readings(folder: Path, training: NDArray[np.uint8], test: Any) -> dict[str, dict[str, float]]:
    """Return accuracy and loss of a finished run with each kind of batch normalisation statistics."""
    run = runs.load_run(folder)
    network = run.network()
    if run.recipe.precise_batch_norm:
        # The checkpoint differs from the final weights in the statistics only: its are the moving averages.
        if run.recipe.optimizer.ema:
            raise TrainingError(f"{folder}: the checkpoint lacks its averaged weights")
        arrays, _ = state.read_archive(folder / runs.CHECKPOINT)
        state.load_network_arrays(network, tuple(t.id for t in run.taxonomies), arrays, str(folder))
    rows = np.random.default_rng(run.recipe.seed).permutation(len(training))[:FACES]
    faces = np.ascontiguousarray(training[rows])
    config = run.recipe.augment.model_copy(update=dict(LEFT_OUT))
    kinds: dict[str, NDArray[Any] | None] = {
        "moving averages of training": None,
        "re-estimated, faces augmented as in training": augmented(faces, config),
        "re-estimated, augmented with cubic interpolation": augmented(
            faces, config.model_copy(update={"interpolation": "cubic"})
        ),
        "re-estimated, brightness and contrast only": augmented(faces, config.model_copy(update=dict(STILL))),
        "re-estimated, faces unchanged": faces,
    }
    weights = network.get_weights()
    result = {}
    for name, shown in kinds.items():
        network.set_weights(weights)
        if shown is not None:
            reestimate_batch_norm(network, shown, FACES, run.recipe.seed)
        p = predict_probabilities(network, np.asarray(test.images))[test.taxonomy.id]
        result[name] = {
            "accuracy": float((p.argmax(axis=1) == test.labels).mean()),
            "loss": negative_log_likelihood(p, np.asarray(test.labels)),
        }
    return result


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as tables."""
    bands = [f"{low:g}-{high:g}" for low, high in itertools.pairwise(BANDS)]
    lines = [
        f"Power left by `modern` of {report['faces']:,} training faces, % by cycles per pixel:",
        "",
        f"| interpolation | {' | '.join(bands)} |",
        "|---|" + "---:|" * len(bands),
    ]
    for kind, left in report["detail"].items():
        lines.append(f"| {kind} | " + " | ".join(f"{100 * share:.0f}" for share in left) + " |")
    names = list(report["runs"])
    lines += [
        "",
        "PublicTest (selection split), tta none, accuracy % / loss by batch normalisation statistics:",
        "",
        f"| statistics | {' | '.join(f'`{name}`' for name in names)} |",
        "|---|" + "---:|" * len(names),
    ]
    for kind in next(iter(report["runs"].values())):
        cells = [report["runs"][name][kind] for name in names]
        lines.append(
            f"| {kind} | " + " | ".join(f"{100 * c['accuracy']:.2f} / {c['loss']:.3f}" for c in cells) + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of finished runs")
    parser.add_argument("--out", type=Path, default=Path("results/sharpness"))
    args = parser.parse_args()
    dataset = load_data(args.data)
    training = np.asarray(dataset.of_split("Training").images)
    test = dataset.of_split("PublicTest")
    sample = training[np.random.default_rng(0).permutation(len(training))[:2048]]
    report = {
        "faces": len(sample),
        "bands": list(BANDS),
        "detail": kept_detail(sample),
        "runs": {folder.name: readings(folder, training, test) for folder in args.runs},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    files.write_json(args.out / "sharpness.json", report)
    files.write_text(args.out / "sharpness.md", as_markdown(report))
    print(as_markdown(report))


if __name__ == "__main__":
    main()
