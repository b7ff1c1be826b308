"""How many hard cuts are found, and how many frames without a cut are taken for one.

Cuts are made from all ordered pairs of the given clips; frames without a cut are successive frames of each
clip, up to 0.2 s apart, and pans, zooms, fades and flashes made from its pictures. Writes cuts.csv.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core import files
from ferkit.core.images import to_gray
from ferkit.video.clip import Clip
from ferkit.video.cuts import CutDetector

SIZE = (640, 360)
STEPS = (1, 2, 3, 5, 6)  # frames of a clip of 30 frames/s, up to 0.2 s
PAN = (0.02, 0.05, 0.1)  # of the width, from one frame to the next
ZOOM = (1.02, 1.05, 1.15)
FADE = (0.9, 0.7, 0.5)
FLASH = (40, 80)

Picture = NDArray[np.uint8]


def read(path: Path, every: int) -> list[Picture]:
    """Return every n-th frame of a clip, uint8 ``[360, 640, 3]``."""
    import cv2

    frames = []
    for k, frame in enumerate(Clip(path).frames()):
        if k % every == 0:
            frames.append(np.asarray(cv2.resize(frame.rgb, SIZE, interpolation=cv2.INTER_AREA), np.uint8))
    return frames


def window(picture: Picture, zoom: float = 1.0, shift: float = 0.0) -> Picture:
    """Return a part of a picture, enlarged to its size; ``shift`` is a share of the width."""
    import cv2

    width, height = SIZE[0] / (1.25 * zoom), SIZE[1] / (1.25 * zoom)
    left = min(SIZE[0] - width, (SIZE[0] - width) / 2 + shift * width)
    top = (SIZE[1] - height) / 2
    matrix = np.array(
        [[SIZE[0] / width, 0, -left * SIZE[0] / width], [0, SIZE[1] / height, -top * SIZE[1] / height]]
    )
    return np.asarray(cv2.warpAffine(picture, matrix, SIZE, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def pairs(clips: dict[str, list[Picture]]) -> Iterator[tuple[str, bool, Picture, Picture]]:
    """Yield kind, whether it is a cut, and two successive frames."""
    for one, other in itertools.permutations(clips, 2):
        for k in range(5):
            before = clips[one][k * (len(clips[one]) - 1) // 4]
            yield "cut", True, before, clips[other][(4 - k) * (len(clips[other]) - 1) // 4]
    for frames in clips.values():
        for step in STEPS:
            for k in range(0, len(frames) - step, 3):
                yield f"{step} frames apart", False, frames[k], frames[k + step]
        for picture in frames[:: max(1, len(frames) // 8)]:
            still = window(picture)
            for shift in PAN:
                yield f"pan by {100 * shift:.0f} %", False, still, window(picture, shift=shift)
            for zoom in ZOOM:
                yield f"zoom by {zoom}", False, still, window(picture, zoom=zoom)
            for share in FADE:
                yield f"fade to {100 * share:.0f} %", False, still, (still * share).astype(np.uint8)
            for add in FLASH:
                yield (
                    f"flash of {add}",
                    False,
                    still,
                    np.clip(still.astype(int) + add, 0, 255).astype(np.uint8),
                )


def main() -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path, help="at least two clips of different scenes")
    parser.add_argument("--out", type=Path, default=Path("results/cuts"))
    arguments = parser.parse_args()
    clips = {path.name: read(path, 1) for path in arguments.clips}
    counts: dict[tuple[str, bool], list[int]] = {}
    for kind, cut, before, now in pairs(clips):
        detector = CutDetector()
        detector.is_cut(before, to_gray(before))
        found = detector.is_cut(now, to_gray(now))
        entry = counts.setdefault((kind, cut), [0, 0])
        entry[0] += 1
        entry[1] += int(found)
    rows: list[dict[str, Any]] = [
        {"kind": kind, "is_cut": int(cut), "pairs": n, "found": found}
        for (kind, cut), (n, found) in counts.items()
    ]
    files.write_csv(arguments.out / "cuts.csv", rows, list(rows[0]))
    for row in rows:
        print(f"{row['kind']:20} {row['found']:5} of {row['pairs']:5} taken for a cut")
    return 0


if __name__ == "__main__":
    sys.exit(main())
