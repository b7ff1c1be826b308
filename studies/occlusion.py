"""Whether occluded faces can be flagged by what a recognizer computes anyway.

    python studies/occlusion.py --data fer2013.csv.gz --out results/occlusion

Objects are drawn over faces of PublicTest: a mask, sunglasses, a hand (an ellipse in the skin's gray) and a
textured object anywhere on the face. Each face is detected and recognised with and without them. For each
signal the table has the area under the ROC curve against the same faces without objects, and the recall
where 1 % and 5 % of the faces without are flagged. `combined` is a logistic regression on all signals, fitted
on the other three objects, since a user's objects are not those of this study. Writes occlusion.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ferkit.core import files
from ferkit.core.classifier import FaceClassifier
from ferkit.core.crops import crop_faces
from ferkit.data import load_data
from ferkit.detect import DEFAULT, Detector, make_detector

SIDE = 160
"""Side in pixels of an enlarged face; the border is replicated by half of it."""

FALSE_ALARMS = (0.01, 0.05)
"""Shares of the faces without an object that are flagged."""

Gray = NDArray[np.uint8]
Draw = Callable[[Gray, np.random.Generator], None]


def mask(face: Gray, rng: np.random.Generator) -> None:
    """Draw a medical mask over nose and mouth."""
    top, gray = rng.uniform(0.55, 0.62), float(rng.uniform(150, 235))
    corners = [(0.14, top), (0.5, top - 0.05), (0.86, top), (0.78, 0.95), (0.5, 1.02), (0.22, 0.95)]
    cv2.fillPoly(face, [np.array([(round(x * SIDE), round(y * SIDE)) for x, y in corners])], (gray,))


def sunglasses(face: Gray, rng: np.random.Generator) -> None:
    """Draw dark glasses over the eyes."""
    gray, y = float(rng.uniform(5, 50)), round(rng.uniform(0.36, 0.41) * SIDE)
    for x in (0.3, 0.7):
        cv2.ellipse(face, (round(x * SIDE), y), (SIDE // 6, SIDE // 8), 0, 0, 360, (gray,), -1)
    cv2.line(face, (round(0.2 * SIDE), y), (round(0.8 * SIDE), y), (gray,), 5)


def hand(face: Gray, rng: np.random.Generator) -> None:
    """Draw an ellipse in the gray of the skin over a part of the face."""
    centre = tuple(round(float(v) * SIDE) for v in rng.uniform((0.25, 0.35), (0.75, 0.8)))
    axes = (round(rng.uniform(0.14, 0.2) * SIDE), round(rng.uniform(0.22, 0.3) * SIDE))
    gray = float(np.median(face)) + float(rng.uniform(-15, 15))
    cv2.ellipse(face, centre, axes, float(rng.uniform(0, 180)), 0, 360, (gray,), -1)


def thing(face: Gray, rng: np.random.Generator) -> None:
    """Draw a textured rectangle over a quarter of the face."""
    x, y = (int(v * SIDE) for v in rng.uniform(0.15, 0.45, 2))
    texture = rng.uniform(0, 256, (6, 6)).astype(np.uint8)
    face[y : y + SIDE // 2, x : x + SIDE // 2] = cv2.resize(texture, (SIDE // 2, SIDE // 2))


OBJECTS: Mapping[str, Draw] = {"mask": mask, "sunglasses": sunglasses, "hand": hand, "object": thing}


def signals(detector: Detector, classifier: FaceClassifier, face: Gray) -> dict[str, float] | None:
    """Return what a recognizer computes for a face uint8 ``[SIDE, SIDE]``; None if it is not detected.

    All signals should be larger for occluded faces. Regions are fractions of the network's input where eyes
    and mouth are in FER2013.
    """
    pad = SIDE // 2
    around = np.asarray(cv2.copyMakeBorder(face, pad, pad, pad, pad, cv2.BORDER_REPLICATE), np.uint8)
    rgb = np.ascontiguousarray(np.repeat(around[:, :, None], 3, axis=2))
    found = detector.detect(rgb)
    if not found or found[0].landmarks is None:
        return None
    info = classifier.info
    crop = crop_faces(
        around,
        [found[0].box],
        [found[0].landmarks],
        geometry=info.crop_for(detector.name),
        size=info.input_size,
    )[0]
    probabilities = next(iter(classifier.predict(crop[None]).values()))[0].astype(np.float64)
    grays = crop.astype(np.float64)
    spread = max(float(grays.std()), 1e-6)
    side = len(crop)
    regions = {
        name: grays[round(y0 * side) : round(y1 * side), round(x0 * side) : round(x1 * side)]
        for name, (x0, y0, x1, y1) in {
            "left eye": (0.18, 0.3, 0.45, 0.48),
            "right eye": (0.55, 0.3, 0.82, 0.48),
            "mouth": (0.28, 0.66, 0.72, 0.88),
        }.items()
    }
    marks = np.array(found[0].landmarks)
    width = max(float(np.linalg.norm(marks[1] - marks[0])), 1e-6)
    middle = marks[[0, 1, 3, 4]].mean(axis=0)
    return {
        "detector score": -found[0].score,
        "confidence": -float(probabilities.max()),
        "entropy": -float((probabilities * np.log(np.maximum(probabilities, 1e-12))).sum()),
        "asymmetry": float(np.abs(grays - grays[:, ::-1]).mean()) / spread,
        "landmarks": float(np.linalg.norm(marks[2] - middle)) / width,
        "flat region": -min(float(part.std()) for part in regions.values()) / spread,
        "dark region": -min(float(part.mean()) for part in regions.values()) / max(float(grays.mean()), 1e-6),
    }


def measure(
    faces: NDArray[np.uint8], detector: Detector, classifier: FaceClassifier, seed: int
) -> tuple[dict[str, list[dict[str, float]]], dict[str, float]]:
    """Return the signals of detected faces by object (``""``: none), and the share that is detected."""
    found: dict[str, list[dict[str, float]]] = {}
    shares = {}
    for name, draw in {"": None, **OBJECTS}.items():
        rng = np.random.default_rng(seed)
        rows = []
        for face in faces:
            large = np.asarray(cv2.resize(face, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), np.uint8)
            if draw is not None:
                draw(large, rng)
            rows.append(signals(detector, classifier, large))
        found[name] = [row for row in rows if row is not None]
        shares[name] = len(found[name]) / len(rows)
    return found, shares


def rows_of(
    detector: str, found: Mapping[str, list[dict[str, float]]], shares: Mapping[str, float]
) -> list[dict[str, str]]:
    """Return the table."""
    names = list(found[""][0])
    values = {kind: np.array([[row[n] for n in names] for row in rows]) for kind, rows in found.items()}
    clear = values[""]
    rows = []
    for kind in OBJECTS:
        scores = {name: (clear[:, k], values[kind][:, k]) for k, name in enumerate(names)}
        others = [values[other] for other in OBJECTS if other != kind]
        x = np.concatenate([clear, *others])
        y = np.repeat([0, 1], [len(clear), sum(map(len, others))])
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")).fit(x, y)
        scores["combined"] = (model.decision_function(clear), model.decision_function(values[kind]))
        for name, (negative, positive) in scores.items():
            truth = np.repeat([0, 1], [len(negative), len(positive)])
            area = roc_auc_score(truth, np.concatenate([negative, positive]))
            rows.append(
                {
                    "detector": detector,
                    "object": kind,
                    "detected": f"{shares[kind]:.3f}",
                    "signal": name,
                    "auc": f"{area:.3f}",
                    **{
                        f"recall at {share:.0%}": f"{recall:.3f}"
                        for share in FALSE_ALARMS
                        for recall in [(positive > np.quantile(negative, 1 - share)).mean()]
                    },
                }
            )
    return rows


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", required=True, help="fer2013.csv.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--detector", default=DEFAULT)
    parser.add_argument("--faces", type=int, default=800, help="of PublicTest, evenly spaced")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    images = load_data(arguments.data).of_split("PublicTest").images
    faces = np.asarray(images[:: max(1, len(images) // arguments.faces)][: arguments.faces])
    detector = make_detector(arguments.detector)
    found, shares = measure(faces, detector, FaceClassifier(), arguments.seed)
    rows = rows_of(detector.name, found, shares)
    arguments.out.mkdir(parents=True, exist_ok=True)
    files.write_csv(arguments.out / "occlusion.csv", rows, list(rows[0]))
    print(f"{len(faces)} faces, {shares['']:.1%} detected without an object")
    for row in rows:
        print("  ".join(f"{value:<14}" for value in row.values()))


if __name__ == "__main__":
    main()
