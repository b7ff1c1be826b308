"""Measures ferkit and the float32 matrix rate in a separate process on a given number of cores."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

from jobs import per_call, per_call_in_turns, serve, take_cores

CORES = take_cores()


@cache
def _classifier(model: str | None) -> Any:
    from ferkit import FaceClassifier

    return FaceClassifier(model, threads=CORES)


@cache
def _recognizer() -> Any:
    from ferkit import Recognizer

    return Recognizer(threads=CORES)


def describe(model: str | None = None) -> dict[str, Any]:
    """Return a model's name and cost, and the libraries whose matrix rate can be measured.

    ``model`` is a name or a file; None is the default model.
    """
    info = _classifier(model).info
    libraries = ["numpy", *(["onnxruntime"] if find_spec("onnx") else [])]
    return {"model": info.name, "architecture": info.architecture, "mmac": info.mmac, "matrices": libraries}


def classify(batch: int, seconds: float, model: str | None = None) -> dict[str, Any]:
    """Return faces per second of a network, from crops to the probabilities of one taxonomy."""
    import numpy as np

    classifier = _classifier(model)
    size = classifier.info.input_size
    faces = np.random.default_rng(0).integers(0, 256, (batch, size, size), dtype=np.uint8)
    taxonomies = [classifier.info.default_taxonomy]
    classifier.predict(faces, taxonomies=taxonomies)
    spent = per_call(lambda: classifier.predict(faces, taxonomies=taxonomies), seconds)
    return {"faces_per_s": batch / spent}


def photo(path: str, seconds: float) -> dict[str, Any]:
    """Return the seconds from a photo's file to the expressions of its faces."""
    recognizer = _recognizer()
    found = len(recognizer.predict(path).faces)
    return {"seconds": per_call(lambda: recognizer.predict(path), seconds), "faces": found}


def stages(path: str, seconds: float, least: int) -> dict[str, Any]:
    """Return the seconds from a photo to its result, of each stage, and of drawing and writing a copy."""
    import tempfile
    from pathlib import Path

    from ferkit.core.crops import crop_faces
    from ferkit.core.images import load_image, to_gray, write_image
    from ferkit.recognize.drawing import draw_faces
    from ferkit.recognize.quality import measure_quality

    # Measure the recognizer's own detector: a second one would compete for memory and threads.
    recognizer = _recognizer()
    rgb, result = load_image(path), recognizer.predict(path)
    crops = recognizer.crops(path)
    drawn = draw_faces(rgb, result)

    def crop() -> None:
        cut = crop_faces(
            to_gray(rgb),
            [face.box for face in result.faces],
            [face.landmarks for face in result.faces],
            geometry=recognizer.pipeline.geometry,
            size=recognizer.info.input_size,
        )
        for face, seen in zip(result.faces, cut, strict=True):
            measure_quality(face.box, face.landmarks, seen, result.width, result.height)

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"out{Path(path).suffix}"
        calls = {
            "whole": lambda: recognizer.predict(path),
            "decode": lambda: load_image(path),
            "detect": lambda: recognizer.detector.detect(rgb),
            "crop": crop,
            "classify": lambda: recognizer.predict_crops(crops),
            "draw": lambda: draw_faces(rgb, result),
            "encode": lambda: write_image(target, drawn),
        }
        spent = per_call_in_turns(calls, seconds, least)
    return {"whole": spent.pop("whole"), "stages": spent, "faces": len(result.faces)}


def matmul(library: str, size: int, seconds: float) -> dict[str, Any]:
    """Return the rate of float32 matrix products of NumPy or ONNX Runtime in GMAC per second."""
    import numpy as np

    a, b = np.random.default_rng(0).random((2, size, size), np.float32)
    session = _matrix_session(size) if library == "onnxruntime" else None

    def call() -> object:
        return np.matmul(a, b) if session is None else session.run(None, {"a": a, "b": b})

    call()
    return {"gmac_per_s": size**3 / per_call(call, seconds) / 1e9}


@cache
def _matrix_session(size: int) -> Any:
    from onnx import TensorProto, helper

    from ferkit.core.runtime import load_onnxruntime

    onnxruntime = load_onnxruntime()
    a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in "abc")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


if __name__ == "__main__":
    serve({"describe": describe, "classify": classify, "photo": photo, "stages": stages, "matmul": matmul})
