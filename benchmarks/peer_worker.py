"""Measures the package ``fer`` in its own environment, without ferkit, on a given number of cores."""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jobs import per_call, serve, take_cores

CORES = take_cores()
PACKAGES = (
    "fer",
    "facenet-pytorch",
    "tensorflow-cpu",
    "tensorflow",
    "torch",
    "opencv-contrib-python",
    "numpy",
)
SIDE = 64  # pixels of the crops that its network takes
KINDS = ("tensorflow", "tensorflow, compiled", "tflite")


@cache
def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.simplefilter("ignore")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(CORES)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


@cache
def _fer(mtcnn: bool = False, use_tflite: bool = True) -> Any:
    tf = _tensorflow()
    module = import_module("fer.fer")
    if use_tflite and module.FER._tflite_interpreter_cache is None:
        # As fer creates it, except for the number of threads.
        path = Path(module.__file__ or "").parent / "data" / "emotion_model_quantized.tflite"
        interpreter = tf.lite.Interpreter(model_path=str(path), num_threads=CORES)
        interpreter.allocate_tensors()
        module.FER._tflite_interpreter_cache = interpreter
    if mtcnn:
        import_module("torch").set_num_threads(CORES)
    return module.FER(mtcnn=mtcnn, use_tflite=use_tflite)


@cache
def _compiled() -> Any:
    tf = _tensorflow()
    network = _fer(use_tflite=False)._FER__emotion_classifier
    return tf.function(lambda faces: network(faces, training=False), jit_compile=False)


def describe() -> dict[str, Any]:
    """Return the installed versions, and the multiplications (millions) and parameters of the network."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    network = _fer(use_tflite=False)._FER__emotion_classifier
    macs = sum(_macs(layer) for layer in network.layers)
    return {"versions": found, "mmac": macs / 1e6, "parameters": network.count_params()}


def _macs(layer: Any) -> int:
    """Return the multiplications of a convolution or dense layer for one picture; 0 for other layers."""
    kind = type(layer).__name__
    if kind == "Dense":
        return int(layer.kernel.shape[0] * layer.kernel.shape[1])
    if kind not in ("Conv2D", "DepthwiseConv2D", "SeparableConv2D"):
        return 0
    places = int(layer.output.shape[1] * layer.output.shape[2])
    kernels = [w for w in layer.weights if len(w.shape) == 4]
    return sum(places * int(w.shape[0] * w.shape[1] * w.shape[2] * w.shape[3]) for w in kernels)


def classify(kind: str, batch: int, seconds: float) -> dict[str, Any]:
    """Return faces per second of the network, from float crops to probabilities, as the package runs it.

    ``tensorflow, compiled`` runs the same network as one graph, which the package does not do.
    """
    import numpy as np

    faces = np.random.default_rng(0).random((batch, SIDE, SIDE), np.float32) * 2 - 1
    if kind == "tensorflow, compiled":
        compiled, given = _compiled(), faces[..., None]

        def call() -> object:
            return compiled(given).numpy()
    else:
        run = _fer(use_tflite=kind == "tflite")._classify_emotions

        def call() -> object:
            return np.asarray(run(faces))

    call()
    return {"faces_per_s": batch / per_call(call, seconds)}


def photo(path: str, mtcnn: bool, seconds: float) -> dict[str, Any]:
    """Return the seconds from a photo's file to the expressions of its faces."""
    recognizer = _fer(mtcnn=mtcnn)
    found = len(recognizer.detect_emotions(path))
    return {"seconds": per_call(lambda: recognizer.detect_emotions(path), seconds), "faces": found}


if __name__ == "__main__":
    serve({"describe": describe, "classify": classify, "photo": photo})
