"""Compare face detectors: recall on FER2013's faces and on photos, false alarms, and time.

FER2013's faces (PublicTest, a selection split) are enlarged four times, covered, rotated, or placed in a gray
picture of 640 x 480. Photos and clips are a folder of one's own: photos are scaled down until the faces that
all detectors find at full size have a given height; those where none finds any, and clips whose name begins
with ``no_face``, count false alarms. Timings are of one thread.

    python studies/detectors.py --data fer2013.csv.gz --media photos/
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ferkit.core import files
from ferkit.core.errors import ImageError
from ferkit.core.images import load_image
from ferkit.data import load_data
from ferkit.detect import Detection, Detector, make_detector

DETECTORS = ("yunet", "centerface")
ENLARGED = 192  # pixels: four times a face of FER2013
HEIGHTS = (64, 48, 32, 24, 16)  # of FER2013's images in a picture of 640 x 480
SCALED = (48, 32, 24, 20, 16)  # median height of the faces of a photo
CLIP_STEP = 10  # frames
SPARSE = 10  # of the faces one in so many is placed in a picture


Picture = NDArray[np.uint8]


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def as_rgb(gray: Picture) -> Picture:
    """Return a gray picture uint8 ``[H, W]`` as uint8 ``[H, W, 3]``."""
    return np.repeat(gray[:, :, None], 3, axis=2)


def enlarge(face: Picture) -> Picture:
    """Return a face of FER2013, four times as large."""
    return np.asarray(cv2.resize(face, (ENLARGED, ENLARGED), interpolation=cv2.INTER_CUBIC), np.uint8)


def cover(picture: Picture) -> Picture:
    """Return a picture whose lower half is gray."""
    covered = picture.copy()
    covered[len(covered) // 2 :] = 128
    return covered


def rotate(picture: Picture, degrees: float = 30) -> Picture:
    """Return a picture, rotated about its middle; its border is replicated."""
    middle = (picture.shape[1] / 2, picture.shape[0] / 2)
    turn = cv2.getRotationMatrix2D(middle, degrees, 1)
    size = (picture.shape[1], picture.shape[0])
    return np.asarray(cv2.warpAffine(picture, turn, size, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def place(face: Picture, side: int, seed: int) -> tuple[Picture, tuple[int, int, int, int]]:
    """Return a gray picture of 640 x 480 with the face, of that side, and the face's place."""
    rng = np.random.default_rng(seed)
    how = cv2.INTER_AREA if side < len(face) else cv2.INTER_CUBIC
    pad = side // 2
    small = cv2.resize(face, (side, side), interpolation=how)
    around = cv2.copyMakeBorder(small, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    x, y = int(rng.integers(0, 640 - 2 * side)), int(rng.integers(0, 480 - 2 * side))
    picture = np.full((480, 640), 128, np.uint8)
    picture[y : y + len(around), x : x + len(around)] = around
    return picture, (x + pad, y + pad, x + pad + side, y + pad + side)


def is_found(faces: Sequence[Detection], place: Sequence[float], least: float = 0.3) -> bool:
    """Whether a detection overlaps a place."""
    return any(overlap(face.box, place) > least for face in faces)


def recall(detector: Detector, scenes: Sequence[tuple[Picture, Sequence[float]]]) -> float:
    """Return the share of scenes, each a gray picture and the place of its face, in which it is found."""
    return float(np.mean([is_found(detector.detect(as_rgb(picture)), at) for picture, at in scenes]))


def read_photos(folder: Path) -> dict[str, Picture]:
    """Return the photos of a folder by name; other files are left out."""
    photos = {}
    for path in sorted(folder.iterdir()):
        try:
            photos[path.name] = load_image(path)
        except ImageError:
            continue
    return photos


def agreed(detectors: Sequence[Detector], photo: Picture) -> list[tuple[float, ...]]:
    """Return the boxes of the first detector's faces that all detectors find at full size."""
    first, *others = (detector.detect(photo) for detector in detectors)
    return [face.box for face in first if all(is_found(found, face.box) for found in others)]


def measure_photos(
    detector: Detector, photos: dict[str, Picture], places: dict[str, list[tuple[float, ...]]]
) -> dict[str, str]:
    """Return the faces found and false alarms in photos, scaled down, and the mean time at full size."""
    cells = {}
    alarms = sum(len(detector.detect(photo)) for name, photo in photos.items() if not places[name])
    for height in SCALED:
        found = 0
        for name, photo in photos.items():
            if not places[name]:
                continue
            scale = height / float(np.median([box[3] - box[1] for box in places[name]]))
            small = np.asarray(
                cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8
            )
            faces = detector.detect(small)
            hit = [is_found(faces, [v * scale for v in box]) for box in places[name]]
            found += sum(hit)
            alarms += max(0, len(faces) - sum(hit))
        cells[f"photos, {height} px"] = f"{found} of {sum(map(len, places.values()))}"
    spent = []
    for photo in photos.values():
        laps = []
        for _ in range(5):
            begin = time.perf_counter()
            detector.detect(photo)
            laps.append(time.perf_counter() - begin)
        spent.append(min(laps))
    return cells | {"false alarms, photos": str(alarms), "ms": f"{1000 * float(np.mean(spent)):.1f}"}


def clip_alarms(detector: Detector, folder: Path) -> str:
    """Return the faces found in each tenth frame of the clips without one."""
    found = frames = 0
    for path in sorted(folder.glob("no_face*")):
        clip = cv2.VideoCapture(str(path))
        index = 0
        while True:
            good, frame = clip.read()
            if not good:
                break
            if index % CLIP_STEP == 0:
                found += len(detector.detect(np.ascontiguousarray(frame[:, :, ::-1])))
                frames += 1
            index += 1
    return f"{found} in {frames}"


def main() -> None:
    """Measure, print and write ``detectors.csv``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", required=True, help="FER2013")
    parser.add_argument("--media", type=Path, required=True, help="photos and clips")
    parser.add_argument("--out", type=Path, default=Path("results/detectors"))
    parser.add_argument("--faces", type=int, default=500, help="faces of PublicTest")
    arguments = parser.parse_args()

    public = load_data(arguments.data, drop_flat=True).of_split("PublicTest")
    chosen = np.random.default_rng(0).permutation(len(public.images))[: arguments.faces]
    faces = [np.asarray(public.images[k]) for k in np.sort(chosen)]
    large = [enlarge(face) for face in faces]
    middle = (0, 0, ENLARGED, ENLARGED)
    series = {
        "crop of 48 px": [(face, (0, 0, 48, 48)) for face in faces],
        "enlarged 4 x": [(face, middle) for face in large],
        "lower half covered": [(cover(face), middle) for face in large],
        "rotated by 30 degrees": [(rotate(face), middle) for face in large],
        **{
            f"{h} px in 640 x 480": [place(face, h, k) for k, face in enumerate(faces[::SPARSE])]
            for h in HEIGHTS
        },
    }
    photos = read_photos(arguments.media)
    plain = [make_detector(name, threads=1) for name in DETECTORS]
    places = {name: agreed(plain, photo) for name, photo in photos.items()}
    rows = []
    for name, detector in zip(DETECTORS, plain, strict=True):
        row = {"detector": name}
        row |= {title: f"{100 * recall(detector, scenes):.1f}" for title, scenes in series.items()}
        row |= measure_photos(detector, photos, places)
        row["false alarms, clips"] = clip_alarms(detector, arguments.media)
        rows.append(row)
        print(row, flush=True)
    files.write_csv(arguments.out / "detectors.csv", rows, list(rows[0]))


if __name__ == "__main__":
    main()
