"""Position of the detector's box and the eyes in FER2013's crops, and the accuracy of crops made by it.

Images of FER2013 are enlarged to sides of 64 to 440 pixels and placed in pictures of 640 x 480, by a seed.
The border of each is replicated by half its side, since the rest of the photo is unknown; beyond that the
picture is gray. In such a picture the right crop is known. The geometry is measured on Training. Faces of
PublicTest (a selection split) are detected, cropped by several geometries, recognised, and compared with the
original crop.

    python studies/crop_geometry.py --data fer2013.csv.gz --detector yunet --against centerface
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ferkit.core import files
from ferkit.core.classifier import FaceClassifier
from ferkit.core.crops import FER2013_CROPS, CropGeometry, crop_corners, crop_faces
from ferkit.core.measures import sharpness
from ferkit.data import load_data
from ferkit.detect import Detection, Detector, make_detector
from ferkit.evaluation.metrics import expected_calibration_error, negative_log_likelihood, wilson_interval
from ferkit.recognize.quality import head_pose

WIDTH, HEIGHT = 640, 480
SMALLEST, LARGEST = 64, 440
"""Range of the side of an image in its picture, in pixels; its logarithm is uniform."""

PATCH = 448
"""Side in pixels of the patch of the second detection; the face's box has half of that."""

WHOLE = CropGeometry(box=(0.0, 0.0, 1.0, 1.0))
"""The box itself is the crop."""

Marks = NDArray[np.float64]
Cut = Callable[[NDArray[np.uint8], "Found"], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture, gray uint8 ``[H, W]``, and the upper left corner and the side of the image in it."""

    gray: NDArray[np.uint8]
    corner: tuple[int, int]
    side: int


@dataclass(frozen=True, slots=True)
class Found:
    """A detected face: box ``[4]`` and landmarks ``[5, 2]``, in pixels of the scene."""

    box: NDArray[np.float64]
    marks: Marks


def make_scenes(images: NDArray[np.uint8], seed: int) -> list[Scene]:
    """Place each image, uint8 ``[S, S]``, in a picture of its own; the seed decides place and size."""
    rng = np.random.default_rng(seed)
    scenes = []
    for image in images:
        side = round(math.exp(rng.uniform(math.log(SMALLEST), math.log(LARGEST))))
        x, y = int(rng.integers(0, WIDTH - side + 1)), int(rng.integers(0, HEIGHT - side + 1))
        large = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
        pad = side // 2
        around = cv2.copyMakeBorder(large, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
        gray = np.full((HEIGHT + 2 * pad, WIDTH + 2 * pad), 128, np.uint8)
        gray[y : y + side + 2 * pad, x : x + side + 2 * pad] = around
        scenes.append(Scene(np.ascontiguousarray(gray[pad : pad + HEIGHT, pad : pad + WIDTH]), (x, y), side))
    return scenes


def detect(detector: Detector, scene: Scene) -> Found | None:
    """Detect the face as the recognizer does; of several the one with the highest score."""
    return _found(detector.detect(np.repeat(scene.gray[:, :, None], 3, axis=2)))


def detect_again(detector: Detector, scene: Scene, face: Found) -> Found:
    """Detect again, at a scale at which the box has half of :data:`PATCH`; keep the first if that fails."""
    x, y = (face.box[:2] + face.box[2:]) / 2
    span = 2 * math.sqrt(float(np.prod(face.box[2:] - face.box[:2])))
    scale = PATCH / span
    there = np.array([[scale, 0, PATCH / 2 - scale * x], [0, scale, PATCH / 2 - scale * y]])
    patch = cv2.warpAffine(
        scene.gray, there, (PATCH, PATCH), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    faces = detector.detect(np.repeat(np.asarray(patch, np.uint8)[:, :, None], 3, axis=2))
    near = [
        f
        for f in faces
        if math.hypot((f.box[0] + f.box[2] - PATCH) / 2, (f.box[1] + f.box[3] - PATCH) / 2) < PATCH / 6
    ]
    again = _found(tuple(near))
    if again is None:
        return face
    corner = np.array([x, y]) - span / 2
    return Found(again.box / scale + np.tile(corner, 2), again.marks / scale + corner)


def _found(faces: tuple[Detection, ...]) -> Found | None:
    if not faces or faces[0].landmarks is None:
        return None
    return Found(np.array(faces[0].box), np.array(faces[0].landmarks))


def measure(scenes: list[Scene], found: list[Found | None]) -> tuple[NDArray[np.float64], Marks]:
    """Return boxes ``[N, 4]`` and landmarks ``[N, 5, 2]`` of the faces, as fractions of the image's side."""
    pairs = [(s, f) for s, f in zip(scenes, found, strict=True) if f is not None]
    boxes = np.array([(f.box - np.tile(s.corner, 2)) / s.side for s, f in pairs])
    return boxes, np.array([(f.marks - np.array(s.corner)) / s.side for s, f in pairs])


def medians(boxes: NDArray[np.float64], marks: Marks) -> tuple[CropGeometry, CropGeometry]:
    """Return the geometry of the medians, rounded to hundredths: by the box, and by the eyes."""
    box = [round(float(v), 2) for v in np.median(boxes, axis=0)]
    eyes = np.median(marks[:, :2], axis=0)
    # Faces are symmetric on average: a difference between the two eyes is the detector's bias.
    half = round(float(eyes[1, 0] - eyes[0, 0]) / 2, 2)
    height = round(float(eyes[:, 1].mean()), 2)
    places = {
        "box": (box[0], box[1], box[2], box[3]),
        "left_eye": (round(0.5 - half, 2), height),
        "right_eye": (round(0.5 + half, 2), height),
    }
    by_box = CropGeometry.model_validate({"align": "box", **places})
    return by_box, by_box.model_copy(update={"align": "eyes"})


def cut_by(geometry: CropGeometry) -> Cut:
    """Return a function that crops by a geometry, as the recognizer does."""

    def cut(gray: NDArray[np.uint8], face: Found) -> NDArray[np.uint8]:
        crops = crop_faces(gray, [face.box], [face.marks], geometry=geometry)
        return np.asarray(crops[0], np.uint8)

    return cut


def features(boxes: NDArray[np.float64], marks: Marks) -> NDArray[np.float64]:
    """Return what squares are fitted from, ``[N, 12]``: landmarks in units of the box, aspect, one."""
    middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    unit = np.sqrt(size.prod(axis=1))[:, None]
    places = (marks - middle[:, None]) / unit[:, None]
    aspect = np.log(size[:, :1] / size[:, 1:])
    return np.concatenate([places.reshape(-1, 10), aspect, np.ones_like(aspect)], axis=1)


def fit_squares(boxes: NDArray[np.float64], marks: Marks) -> NDArray[np.float64]:
    """Fit the square of a crop linearly to box and landmarks, which are fractions of the right crop.

    Large errors count linearly (Huber's loss, by reweighting), since some detections are far off.

    Returns:
        float64 ``[12, 3]``: x, y of the centre from the box's centre and the logarithm of the side, in units
        of the square root of the box's area.
    """
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    unit = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))[:, None]
    targets = np.concatenate([(0.5 - middle) / unit, -np.log(unit)], axis=1)
    given = features(boxes, marks)
    columns = []
    for target in targets.T:
        weights = np.ones(len(target))
        for _ in range(20):
            root = np.sqrt(weights)
            column = np.linalg.lstsq(given * root[:, None], target * root, rcond=None)[0]
            error = np.abs(target - given @ column)
            limit = 1.345 * 1.4826 * np.median(error)
            weights = np.minimum(1, limit / np.maximum(error, 1e-12))
        columns.append(column)
    return np.stack(columns, axis=1)


def fitted_squares(boxes: NDArray[np.float64], marks: Marks, fit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the squares ``[N, 4]`` that a fit finds for boxes and landmarks, as boxes."""
    unit = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))[:, None]
    found = features(boxes, marks) @ fit
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 + found[:, :2] * unit
    half = np.exp(found[:, 2:]) * unit / 2
    return np.concatenate([middle - half, middle + half], axis=1)


def cut_by_fit(fit: NDArray[np.float64]) -> Cut:
    """Return a function that crops the square of a fit."""

    def cut(gray: NDArray[np.uint8], face: Found) -> NDArray[np.uint8]:
        squares = fitted_squares(face.box[None], face.marks[None], fit)
        return np.asarray(crop_faces(gray, squares, geometry=WHOLE)[0], np.uint8)

    return cut


def squeezed(gray: NDArray[np.uint8], face: Found) -> NDArray[np.uint8]:
    """Crop the box alone and resize it to a square, without regard to its aspect ratio."""
    height, width = gray.shape
    left, top, right, bottom = np.rint(face.box).astype(int)
    part = gray[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    return np.asarray(cv2.resize(part, (48, 48), interpolation=cv2.INTER_AREA), np.uint8)


def scaled(geometry: CropGeometry, factor: float) -> CropGeometry:
    """Return a geometry whose crops are larger by ``factor`` around the same centre."""
    left, top, right, bottom = (0.5 + (v - 0.5) / factor for v in geometry.box)
    return geometry.model_copy(update={"box": (left, top, right, bottom)})


def spread(boxes: NDArray[np.float64], marks: Marks, geometry: CropGeometry) -> tuple[float, float, float]:
    """Return the error of crops: median distance of the centre; median and 90 % of abs(log side)."""
    corners = crop_corners(boxes, marks, geometry=geometry)
    off = np.hypot(*(corners.mean(axis=1) - 0.5).T)
    size = np.abs(np.log(np.hypot(*(corners[:, 1] - corners[:, 0]).T)))
    return float(np.median(off)), float(np.median(size)), float(np.quantile(size, 0.9))


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions for the faces found, over all rounds: probabilities, true labels, index of the image."""

    probabilities: NDArray[np.float32]
    truth: NDArray[np.int64]
    image: NDArray[np.intp]

    def right(self) -> NDArray[np.bool_]:
        """Which predictions are right."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.truth)


def difference(a: Predictions, b: Predictions) -> tuple[float, float]:
    """Return the difference in accuracy, ``a`` minus ``b``, and half of its 95 % interval.

    Rounds repeat the same images, so the mean over the rounds of an image is one observation.
    """
    delta = a.right().astype(float) - b.right()
    count = np.bincount(a.image)
    means = np.bincount(a.image, weights=delta)[count > 0] / count[count > 0]
    return float(delta.mean()), 1.96 * float(means.std()) / math.sqrt(len(means))


def row_of(
    name: str, look: str, predicted: Predictions, original: Predictions, box: Predictions, shown: int
) -> dict[str, str]:
    """Return a row of the table of accuracies."""
    right = predicted.right()
    low, high = wilson_interval(int(right.sum()), len(right))
    cells = {
        "crop": name,
        "look": look,
        "faces": f"{len(right)} of {shown}",
        "accuracy %": f"{100 * right.mean():.2f}",
        "low": f"{100 * low:.2f}",
        "high": f"{100 * high:.2f}",
        "missed count as wrong %": f"{100 * right.sum() / shown:.2f}",
        "NLL": f"{negative_log_likelihood(predicted.probabilities, predicted.truth):.4f}",
        "ECE": f"{expected_calibration_error(predicted.probabilities, predicted.truth):.4f}",
        "label of the original crop %": (
            f"{100 * (predicted.probabilities.argmax(1) == original.probabilities.argmax(1)).mean():.2f}"
        ),
    }
    for title, other in (("against original", original), ("against box", box)):
        points, half = difference(predicted, other)
        cells[title] = f"{100 * points:+.2f} +- {100 * half:.2f}"
    return cells


def draw(means: dict[str, NDArray[np.float64]], boxes: NDArray[np.float64], marks: Marks, path: Path) -> None:
    """Draw the mean of all crops for every geometry; the first with boxes and landmarks.

    Means only, since the images themselves are FER2013's.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(means), figsize=(2.6 * len(means), 3))
    for axis, (name, mean) in zip(axes, means.items(), strict=True):
        axis.imshow(mean, cmap="gray", extent=(0, 1, 1, 0))
        axis.set_title(name, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    left, top, right, bottom = np.median(boxes, axis=0)
    axes[0].plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="gold")
    for place in marks[:400].transpose(1, 0, 2):
        axes[0].scatter(*place.T, s=1, alpha=0.4)
    axes[0].set(xlim=(0, 1), ylim=(1, 0))
    figure.tight_layout(pad=0.4)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90)
    plt.close(figure)
    files.write_bytes(path, buffer.getvalue())


def against(
    other: str,
    detector: str,
    rounds: list[tuple[list[Scene], dict[str, list[Found | None]]]],
    labels: NDArray[np.int64],
    model: FaceClassifier,
) -> dict[str, object]:
    """Compare the accuracy of the crops of two detectors, on the faces that both find."""
    looked = make_detector(other)
    crops: dict[str, list[NDArray[np.uint8]]] = {detector: [], other: []}
    both, right = [], {}
    counts = {detector: 0, other: 0}
    for scenes, found in rounds:
        for index, (scene, face) in enumerate(zip(scenes, found["first"], strict=True)):
            pair = {detector: face, other: detect(looked, scene)}
            for name, one in pair.items():
                counts[name] += one is not None
            if all(one is not None for one in pair.values()):
                both.append(index)
                for name, one in pair.items():
                    assert one is not None
                    crops[name].append(cut_by(FER2013_CROPS[name])(scene.gray, one))
    at = np.array(both)
    for name, cut in crops.items():
        right[name] = Predictions(model.predict(np.stack(cut))["fer2013"], labels[at], at)
    points, half = difference(right[detector], right[other])
    return {
        "detector": other,
        "found": counts,
        "found by both": len(at),
        "accuracy %": {name: round(100 * float(one.right().mean()), 2) for name, one in right.items()},
        "difference, points": round(100 * points, 2),
        "95 %": round(100 * half, 2),
    }


def main() -> None:
    """Measure, compare, and write ``geometry.json``, ``accuracy.csv`` and ``means.png``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", required=True, help="FER2013")
    parser.add_argument("--model", default=None, help="a model file; by default the embedded model")
    parser.add_argument("--detector", default="yunet")
    parser.add_argument("--against", default="centerface", help="the detector that is compared with")
    parser.add_argument("--out", type=Path, help="by default results/crop-geometry/DETECTOR")
    parser.add_argument("--faces", type=int, default=2000, help="Training images that are measured")
    parser.add_argument("--rounds", type=int, default=1, help="passes over PublicTest, in new pictures")
    parser.add_argument("--limit", type=int, default=None, help="PublicTest images, for a quick trial")
    arguments = parser.parse_args()

    dataset = load_data(arguments.data, drop_flat=True)
    training, public = dataset.of_split("Training"), dataset.of_split("PublicTest")
    chosen = np.random.default_rng(0).permutation(len(training.images))[: arguments.faces]
    detector, model = make_detector(arguments.detector), FaceClassifier(arguments.model)
    out = arguments.out or Path("results/crop-geometry") / arguments.detector

    sample = np.asarray(training.images[np.sort(chosen)])
    scenes = make_scenes(sample, seed=1)
    first = [detect(detector, scene) for scene in scenes]
    again = [None if f is None else detect_again(detector, s, f) for s, f in zip(scenes, first, strict=True)]
    boxes, marks = measure(scenes, first)
    by_box, by_eyes = medians(boxes, marks)
    again_box, _ = medians(*measure(scenes, again))
    fit = fit_squares(boxes, marks)
    squares = fitted_squares(boxes, marks, fit)
    print(f"found {len(boxes)} of {len(sample)}; {by_box}", flush=True)
    sides = np.array([s.side for s, f in zip(scenes, first, strict=True) if f is not None])
    bounds = np.quantile(sides, [0, 1 / 3, 2 / 3, 1]).round().astype(int).tolist()
    poses = np.array([pose for pose in map(head_pose, marks) if pose is not None])
    sharp = np.array([sharpness(image) for image in sample])
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    geometry = {
        "images": len(sample),
        "found": len(boxes),
        "sides": [SMALLEST, LARGEST],
        "quantiles": levels,
        "box": np.quantile(boxes, levels, axis=0).round(4).T.tolist(),
        "left_eye": np.quantile(marks[:, 0], levels, axis=0).round(4).T.tolist(),
        "right_eye": np.quantile(marks[:, 1], levels, axis=0).round(4).T.tolist(),
        "box_by_side": {
            f"{low}..{high}": np.median(boxes[(sides >= low) & (sides <= high)], axis=0).round(3).tolist()
            for low, high in pairwise(bounds)
        },
        "geometry": by_box.model_dump(mode="json"),
        "geometry_second_look": again_box.model_dump(mode="json"),
        "spread": {
            "columns": ["centre, median", "|log side|, median", "|log side|, 90 %"],
            "box": np.round(spread(boxes, marks, by_box), 4).tolist(),
            "eyes": np.round(spread(boxes, marks, by_eyes), 4).tolist(),
            "box and landmarks": np.round(spread(squares, marks, WHOLE), 4).tolist(),
            "box, second look": np.round(spread(*measure(scenes, again), again_box), 4).tolist(),
        },
        "yaw_pitch_roll": np.quantile(poses, levels, axis=0).round(1).T.tolist(),
        "sharpness": {
            f"{level:g}": round(float(np.quantile(sharp, level)), 3) for level in (0.01, 0.05, 0.5, 0.95)
        },
    }

    images = np.asarray(public.images)[: arguments.limit]
    labels = np.asarray(public.labels)[: arguments.limit]
    rounds: list[tuple[list[Scene], dict[str, list[Found | None]]]] = []
    seconds = {"first": 0.0, "second": 0.0}
    for k in range(arguments.rounds):
        scenes = make_scenes(images, seed=2 + k)
        begin = time.perf_counter()
        first = [detect(detector, scene) for scene in scenes]
        middle = time.perf_counter()
        again = [
            None if f is None else detect_again(detector, s, f) for s, f in zip(scenes, first, strict=True)
        ]
        seconds["first"] += middle - begin
        seconds["second"] += time.perf_counter() - middle
        rounds.append((scenes, {"first": first, "second": again}))
        print(f"round {k + 1}: found {sum(f is not None for f in first)} of {len(first)}", flush=True)

    ways: dict[str, tuple[str, Cut]] = {
        "box": ("first", cut_by(by_box)),
        "box alone, squeezed": ("first", squeezed),
        "box alone, as a square": ("first", cut_by(WHOLE)),
        "box, as in model files": ("first", cut_by(FER2013_CROPS[arguments.detector])),
        "box and landmarks": ("first", cut_by_fit(fit)),
        "eyes": ("first", cut_by(by_eyes)),
        "box, 10 % smaller": ("first", cut_by(scaled(by_box, 0.9))),
        "box, 10 % larger": ("first", cut_by(scaled(by_box, 1.1))),
        "box, second look": ("second", cut_by(again_box)),
        "eyes, second look": ("second", cut_by(by_eyes)),
    }
    seen = [np.flatnonzero([f is not None for f in found["first"]]) for _, found in rounds]
    at = np.concatenate(seen)
    shown = len(images) * arguments.rounds
    probabilities = model.predict(images)["fer2013"]
    original = Predictions(probabilities[at], labels[at], at)
    by_name: dict[str, Predictions] = {}
    means = {"original crop": images[at].mean(axis=0)}
    for name, (look, cut) in ways.items():
        crops = [
            cut(scene.gray, face)
            for scenes, found in rounds
            for scene, face in zip(scenes, found[look], strict=True)
            if face is not None
        ]
        by_name[name] = Predictions(model.predict(np.stack(crops))["fer2013"], labels[at], at)
        means[name] = np.mean(crops, axis=0)
    box = by_name["box"]
    every = Predictions(probabilities, labels, np.arange(len(labels)))
    rows = [row_of("original crop, all images", "-", every, every, every, len(images))]
    rows.append(row_of("original crop", "-", original, original, box, shown))
    rows += [
        row_of(name, ways[name][0], predicted, original, box, shown) for name, predicted in by_name.items()
    ]
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    print(buffer.getvalue())
    faces = len(at)
    shown_sides = np.array([scene.side for scenes, _ in rounds for scene in scenes])
    hit = np.concatenate([[f is not None for f in found["first"]] for _, found in rounds])
    cuts = np.quantile(shown_sides, [0, 1 / 3, 2 / 3, 1]).round().astype(int).tolist()
    geometry["found_by_side"] = {
        f"{low}..{high}": round(float(hit[(shown_sides >= low) & (shown_sides <= high)].mean()), 4)
        for low, high in pairwise(cuts)
    }
    geometry["milliseconds"] = {
        "first look, per picture": round(1000 * seconds["first"] / shown, 1),
        "second look, per face": round(1000 * seconds["second"] / faces, 1),
    }
    geometry["model"] = {"name": model.info.name, "version": model.info.version}
    geometry["rounds"] = arguments.rounds
    geometry["against"] = against(arguments.against, arguments.detector, rounds, labels, model)
    print(geometry["against"])
    files.write_json(out / "geometry.json", geometry)
    files.write_text(out / "accuracy.csv", buffer.getvalue())
    kept = ("original crop", "box", "box alone, squeezed", "eyes", "box and landmarks", "box, second look")
    draw({name: means[name] for name in kept}, boxes, marks, out / "means.png")


if __name__ == "__main__":
    main()
