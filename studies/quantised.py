"""Measure what int8 saves and costs: the classifier and the detector, quantised by ONNX Runtime (QDQ).

Activations are uint8, weights int8 per channel, calibrated on faces of Training. Accuracy and recall are of
PublicTest (a selection split); times are processor time of one thread, the best of many, in turns.

    python studies/quantised.py --data fer2013.csv.gz
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from crop_geometry import make_scenes
from detectors import ENLARGED, as_rgb, cover, enlarge, recall
from numpy.typing import NDArray
from onnx import version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from ferkit.core import files, onnxbytes
from ferkit.core.errors import DetectorError
from ferkit.core.modelfile import resolve_model
from ferkit.core.runtime import open_session
from ferkit.data import load_data
from ferkit.detect.search import as_input
from ferkit.detect.yunet import YuNet, model_path

Feed = dict[str, NDArray[Any]]
OPSET = 13  # the first with scales per channel


class Feeds(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
    """Inputs that ranges are measured on."""

    def __init__(self, feeds: Iterator[Feed]) -> None:
        self._feeds = feeds

    def get_next(self) -> Feed | None:
        """Return the next input, or None."""
        return next(self._feeds, None)


def quantise(content: bytes, feeds: list[Feed], folder: Path) -> bytes:
    """Return the model with int8 weights and uint8 activations."""
    source, target = folder / "float.onnx", folder / "int8.onnx"
    model = onnx.load_from_string(content)
    if model.opset_import[0].version < OPSET:
        model = version_converter.convert_version(model, OPSET)
    onnx.save(model, source)
    quantize_static(
        source,
        target,
        Feeds(iter(feeds)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return target.read_bytes()


def milliseconds(sessions: list[Any], feed: Feed, rounds: int = 25) -> list[float]:
    """Return the processor time of one call of each session: the least of all rounds, in turns."""
    spent: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds):
        for session, laps in zip(sessions, spent, strict=True):
            begin = time.process_time()
            session.run(None, feed)
            laps.append(time.process_time() - begin)
    return [1000 * min(laps) for laps in spent]


def main() -> None:
    """Measure, print and write ``quantised.csv``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", required=True, help="FER2013")
    parser.add_argument("--model", default=None, help="by default the embedded model")
    parser.add_argument("--out", type=Path, default=Path("results/quantised"))
    parser.add_argument("--faces", type=int, default=300, help="faces of PublicTest for the detector")
    arguments = parser.parse_args()
    dataset = load_data(arguments.data, drop_flat=True)
    training, public = dataset.of_split("Training"), dataset.of_split("PublicTest")
    known = np.asarray(training.images[:256], np.uint8)
    images, labels = np.asarray(public.images), np.asarray(public.labels)
    rows: list[dict[str, str]] = []

    def session(content: bytes) -> Any:
        return open_session(content, "the model", fail=DetectorError, threads=1)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = resolve_model(arguments.model).read_bytes()
        batches = [{"face": known[k : k + 32]} for k in range(0, len(known), 32)]
        pair = [session(content), session(quantise(content, batches, folder))]
        found = [
            np.concatenate([s.run(["fer2013"], {"face": part})[0] for part in np.array_split(images, 60)])
            for s in pair
        ]
        same = float((found[0].argmax(1) == found[1].argmax(1)).mean())
        times = zip(milliseconds(pair, {"face": known[:1]}), milliseconds(pair, batches[0]), strict=True)
        for kind, probabilities, (one, many) in zip(("float", "int8"), found, times, strict=True):
            right = float((probabilities.argmax(1) == labels).mean())
            rows += [
                {"network": "classifier", "weights": kind, "measure": measure, "value": f"{value:.2f}"}
                for measure, value in (
                    ("accuracy %", 100 * right),
                    ("label of float %", 100 * same if kind == "int8" else 100.0),
                    ("ms, 1 face", one),
                    ("ms, 32 faces", many),
                )
            ]
        content = onnxbytes.free_sizes(model_path().read_bytes())
        scenes = make_scenes(known[:60], seed=5)
        inputs = [{"input": as_input(as_rgb(scene.gray), bgr=True)} for scene in scenes]
        pair = [session(content), session(quantise(content, inputs, folder))]
        large = [enlarge(face) for face in images[: arguments.faces]]
        place = (0, 0, ENLARGED, ENLARGED)
        for kind, one_session, spent in zip(
            ("float", "int8"), pair, milliseconds(pair, inputs[0]), strict=True
        ):
            detector = YuNet(threads=1)
            detector._session = one_session
            rows += [
                {"network": "yunet", "weights": kind, "measure": measure, "value": f"{value:.2f}"}
                for measure, value in (
                    ("enlarged 4 x, found %", 100 * recall(detector, [(face, place) for face in large])),
                    (
                        "lower half covered %",
                        100 * recall(detector, [(cover(face), place) for face in large]),
                    ),
                    ("ms, 640 x 480", spent),
                )
            ]
    files.write_csv(arguments.out / "quantised.csv", rows, list(rows[0]))
    for row in rows:
        print(*row.values())


if __name__ == "__main__":
    main()
