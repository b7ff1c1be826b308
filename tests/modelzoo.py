"""Small model files, made on the spot with ``onnx.helper``: for tests that need a model, not a good one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ferkit.core import taxonomy
from ferkit.core.crops import FER2013_CROPS, CropGeometry
from ferkit.core.modelfile import HeadInfo, Metric, ModelInfo, write_model

BOTH = (taxonomy.FER2013, taxonomy.FERPLUS)


def graph_bytes(
    taxonomies: tuple[taxonomy.Taxonomy, ...] = BOTH,
    *,
    size: int = 48,
    cam: bool = True,
    softmax: bool = True,
    batch: int | str = "N",
    seed: int = 0,
) -> bytes:
    """A graph of the contract: one convolution, a map per label, its mean, softmax."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(0, 1, (16, 1, 8, 8)).astype(np.float32)
    weights = {"kernel": kernel, "scale": np.float32(1 / 255), "axis": np.array([1], np.int64)}
    nodes = [
        helper.make_node("Cast", ["face"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Unsqueeze", ["scaled", "axis"], ["image"]),
        helper.make_node("Conv", ["image", "kernel"], ["features"], strides=[4, 4]),
        helper.make_node("Relu", ["features"], ["active"]),
    ]
    side = (size - 8) // 4 + 1
    outputs = []
    for label_set in taxonomies:
        name, k = label_set.id, len(label_set)
        weights[f"w_{name}"] = rng.normal(0, 0.7, (k, 16, 1, 1)).astype(np.float32)
        nodes += [
            helper.make_node("Conv", ["active", f"w_{name}"], [f"cam_{name}"]),
            helper.make_node("GlobalAveragePool", [f"cam_{name}"], [f"mean_{name}"]),
            helper.make_node("Flatten", [f"mean_{name}"], [f"logits_{name}"]),
            helper.make_node("Softmax" if softmax else "Identity", [f"logits_{name}"], [name]),
        ]
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, k]))
        if cam:
            outputs.append(
                helper.make_tensor_value_info(f"cam_{name}", TensorProto.FLOAT, [batch, k, side, side])
            )
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("face", TensorProto.UINT8, [batch, size, size])],
        outputs,
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def model_info(
    taxonomies: tuple[taxonomy.Taxonomy, ...] = BOTH,
    *,
    size: int = 48,
    cam: bool = True,
    crop: CropGeometry | None = None,
    temperature: float = 1.0,
) -> ModelInfo:
    """Metadata that fits :func:`graph_bytes`."""
    return ModelInfo(
        name="tiny",
        architecture="test",
        taxonomies=tuple(
            HeadInfo(id=t.id, labels=t.labels, temperature=temperature, cam=cam) for t in taxonomies
        ),
        default_taxonomy=taxonomies[0].id,
        input_size=size,
        view_size=size,
        crops={"yunet": crop} if crop else dict(FER2013_CROPS),
    )


def metric(n: int, **changes: Any) -> Metric:
    """One row of a model file's figures."""
    figures = {"accuracy": 0.5, "interval": (0.4, 0.6), "macro_f1": 0.5, "nll": 1.0, "ece": 0.1}
    return Metric(**{"split": "PublicTest", "tta": "none", "labels": "fer2013", "n": n, **figures, **changes})


def write_tiny_model(
    path: Path,
    taxonomies: tuple[taxonomy.Taxonomy, ...] = BOTH,
    *,
    size: int = 48,
    cam: bool = True,
    seed: int = 0,
    crop: CropGeometry | None = None,
    temperature: float = 1.0,
) -> Path:
    """Write a small complete model file and return its path; the temperature is recorded, not applied."""
    write_model(
        graph_bytes(taxonomies, size=size, cam=cam, seed=seed),
        model_info(taxonomies, size=size, cam=cam, crop=crop, temperature=temperature),
        path,
    )
    return path


def write_toy_yunet(path: Path) -> Path:
    """Write a network of YuNet's form that finds red cells of 8 x 8 pixels as faces of 40 x 40 pixels."""
    nodes, weights = [], {"zero": np.float32(0), "scale": np.float32(1 / 255)}
    weights |= {
        "flat1": np.array([1, -1, 1], np.int64),
        "box": np.array([[[0.5, 0.5, np.log(5), np.log(5)]]], np.float32),
        "marks": np.array([[[0, 0, 1, 0, 0.5, 0.5, 0, 1, 1, 1]]], np.float32),
        "red": np.array([0, 0, 1 / 255], np.float32).reshape(1, 3, 1, 1),  # OpenCV feeds B, G, R
    }
    nodes.append(helper.make_node("Conv", ["input", "red"], ["redness"]))
    outputs = []
    for stride in (8, 16, 32):
        mean, flat = f"mean_{stride}", f"flat_{stride}"
        nodes += [
            helper.make_node(
                "AveragePool", ["redness"], [mean], kernel_shape=[stride] * 2, strides=[stride] * 2
            ),
            helper.make_node("Reshape", [mean, "flat1"], [flat]),
            helper.make_node("Mul", [flat, "zero"], [f"none_{stride}"]),
            helper.make_node("Identity", [flat if stride == 8 else f"none_{stride}"], [f"cls_{stride}"]),
            helper.make_node("Identity", [flat if stride == 8 else f"none_{stride}"], [f"obj_{stride}"]),
            helper.make_node("Add", [f"none_{stride}", "box"], [f"bbox_{stride}"]),
            helper.make_node("Add", [f"none_{stride}", "marks"], [f"kps_{stride}"]),
        ]
        for name, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            outputs.append(
                helper.make_tensor_value_info(f"{name}_{stride}", TensorProto.FLOAT, [1, "n", width])
            )
    graph = helper.make_graph(
        nodes,
        "toy-yunet",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 320, 320])],
        outputs,
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path
