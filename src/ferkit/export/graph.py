"""From a trained Keras network to the graph of a model file: raw pixels in, calibrated probabilities out."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import ModelFileError
from ferkit.core.modelfile import CAM_PREFIX, INPUT

PRECISIONS = ("float32", "float16", "mixed", "int8")
"""How weights are stored, ``mixed`` the largest as int8 and the others as float16; the arithmetic is float32
in any case."""

_INT8_FROM = {"mixed": 1 << 17, "int8": 1 << 12}
"""Smallest size of a tensor that is stored as int8; smaller ones stay float16."""

_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of a row's largest weight that are tried as the value of 127."""

_OPSET = 18

_MOVES = ("Cast", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""Operations that move pixels and do not change their values."""


def has_cam(network: Any, taxonomy_id: str) -> bool:
    """Return whether a head is a dense layer on a globally pooled map, which class activation maps need."""
    return f"pool_{taxonomy_id}" in {layer.name for layer in network.layers}


def to_onnx(
    network: Any, temperatures: Mapping[str, float], *, cams: bool = True, precision: str = "float32"
) -> bytes:
    """Return the network as a serialised ONNX model that follows the contract of ``ferkit.core.modelfile``.

    Args:
        network: From :func:`ferkit.models.build_model`, with its weights.
        temperatures: T by which each head's logits are divided; 1 where absent.
        cams: Whether to add ``cam_<taxonomy>`` outputs where the architecture gives them: the share of
            each place in the logit, float32 ``[N, K, h, w]`` (Zhou et al. 2016).
        precision: How weights are stored, one of :data:`PRECISIONS`.

    Raises:
        ModelFileError: If the precision is unknown or the conversion fails.
    """
    import keras
    import onnx
    from keras import ops

    if precision not in PRECISIONS:
        raise ModelFileError(f"unknown precision {precision!r}; known are {', '.join(PRECISIONS)}")
    size = network.input_shape[1]
    face = keras.Input((size, size), dtype="uint8", name=INPUT)
    heads = list(network.output)
    mapped = [h for h in heads if cams and has_cam(network, h)]
    maps = [network.get_layer(f"pool_{h}").input for h in mapped[:1]]
    body = keras.Model(network.input, [network.output[h] for h in heads] + maps)
    results = body(ops.expand_dims(ops.cast(face, "float32"), -1), training=False)
    outputs, names = [], []
    for head, logits in zip(heads, results, strict=False):
        outputs.append(ops.softmax(logits / float(temperatures.get(head, 1.0)), axis=-1))
        names.append(head)
    for head in mapped:
        kernel = network.get_layer(f"logits_{head}").kernel
        at_places = keras.layers.Conv2D(kernel.shape[1], 1, use_bias=False)
        outputs.append(ops.transpose(at_places(results[-1]), (0, 3, 1, 2)))
        at_places.set_weights([ops.convert_to_numpy(kernel)[None, None]])
        names.append(CAM_PREFIX + head)
    model = keras.Model(face, outputs)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "model.onnx"
        signature = [keras.InputSpec(dtype="uint8", shape=(None, size, size), name=INPUT)]
        model.export(str(path), format="onnx", verbose=False, input_signature=signature, opset_version=_OPSET)
        proto = onnx.load(str(path))
    _name_outputs(proto, names, [tuple(o.shape[1:]) for o in outputs])
    _scale_weights(proto.graph)
    proto.producer_name, proto.producer_version, proto.doc_string = "ferkit", "", ""
    if precision != "float32":
        _store_small(proto, _INT8_FROM.get(precision))
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def _name_outputs(proto: Any, names: list[str], shapes: list[tuple[int, ...]]) -> None:
    """Name the outputs as the contract does, and make the batch a free dimension."""
    import onnx

    graph = proto.graph
    if len(graph.output) != len(names):
        raise ModelFileError(f"the conversion gave {len(graph.output)} outputs for {len(names)}")
    for output, name, shape in zip(graph.output, names, shapes, strict=True):
        for dimension, length in zip(output.type.tensor_type.shape.dim[1:], shape, strict=True):
            dimension.dim_value = length
        # An Identity, not a renaming: two outputs of the conversion may be one value.
        graph.node.append(onnx.helper.make_node("Identity", [output.name], [name]))
        output.name = name
    taken = graph.input[0].name
    _rename(graph, taken, INPUT)
    graph.input[0].name = INPUT
    graph.name = "ferkit"
    for value in (graph.input[0], *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"


def _rename(graph: Any, old: str, new: str) -> None:
    """Let every node that takes a value take another one."""
    for node in graph.node:
        for k, value in enumerate(node.input):
            if value == old:
                node.input[k] = new


def _scale_weights(graph: Any) -> None:
    """Scale the weights of the first convolution in place of the pixels, where nothing else sees these.

    Sessions compute the scaled weights once, when they open.
    """
    import onnx
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    value, factor, scaling = graph.input[0].name, 1.0, []
    while True:
        users = [node for node in graph.node if value in node.input]
        if len(users) != 1:
            return
        node = users[0]
        if node.op_type == "Conv":
            break
        if node.op_type in ("Mul", "Add"):
            other = next((name for name in node.input if name != value), "")
            number = numpy_helper.to_array(constants[other]) if other in constants else np.zeros(2)
            if number.size != 1 or (node.op_type == "Add" and number.item() != 0):
                return
            factor *= number.item() if node.op_type == "Mul" else 1.0
            scaling.append((node, value))
        elif node.op_type not in _MOVES:
            return
        value = node.output[0]
    if not scaling or node.input[0] != value:
        return
    for skipped, pixels in reversed(scaling):
        _rename(graph, skipped.output[0], pixels)
        graph.node.remove(skipped)
    weights = node.input[1]
    scaled = onnx.helper.make_node("Mul", [weights, f"{weights}/factor"], [f"{weights}/scaled"])
    graph.initializer.append(numpy_helper.from_array(np.float32(factor), f"{weights}/factor"))
    graph.node.insert(list(graph.node).index(node), scaled)
    node.input[1] = f"{weights}/scaled"


def _store_small(proto: Any, int8_from: int | None) -> None:
    """Store large weights in fewer bits and expand them where they are used; sessions fold that away.

    Tensors of at least ``int8_from`` weights become int8, the others float16.
    """
    import onnx
    from onnx import numpy_helper

    graph = proto.graph
    kept, nodes = [], []

    def store(values: Any, name: str, result: str) -> None:
        kept.append(numpy_helper.from_array(values, name))
        nodes.append(onnx.helper.make_node("Cast", [name], [result], to=onnx.TensorProto.FLOAT))

    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < 64:
            kept.append(tensor)
            continue
        if not np.isfinite(values.astype(np.float16)).all():
            raise ModelFileError(f"weights of {tensor.name} exceed float16; export with --precision float32")
        if int8_from is not None and values.ndim in (2, 4) and values.size >= int8_from:
            steps, scales = quantized(values, axis=1 if values.ndim == 4 else 0)
            store(steps, f"{tensor.name}/int8", f"{tensor.name}/steps")
            store(scales, f"{tensor.name}/scales", f"{tensor.name}/scale")
            parts = [f"{tensor.name}/steps", f"{tensor.name}/scale"]
            nodes.append(onnx.helper.make_node("Mul", parts, [tensor.name]))
        else:
            store(values.astype(np.float16), f"{tensor.name}/float16", tensor.name)
    nodes += list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def quantized(weights: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Return whole steps of -127..127 and the length of a step, whose product is nearly the weights.

    Each row along ``axis`` has its own step: of a convolution ``[O, I, h, w]`` along the inputs, so that
    every place of every kernel has one, since a kernel's middle is larger than its edges. Among
    :data:`_CLIPS` the one with the smallest sum of squared errors is taken.
    """
    largest = np.abs(weights).max(axis=axis, keepdims=True)
    least = np.full(largest.shape, np.inf, np.float32)
    scales = np.zeros(largest.shape, np.float16)
    steps = np.zeros(weights.shape, np.int8)
    for clip in _CLIPS:
        # As it is stored; no step is so short that float16 has no number for it.
        scale = np.maximum(clip * largest / 127, 2.0**-24).astype(np.float16)
        rounded = np.clip(np.round(weights / scale.astype(np.float32)), -127, 127)
        error = ((rounded * scale.astype(np.float32) - weights) ** 2).sum(axis=axis, keepdims=True)
        better = error < least
        least = np.where(better, error, least)
        scales = np.where(better, scale, scales)
        steps = np.where(better, rounded.astype(np.int8), steps)
    return steps, scales


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the converters print and log; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("tf2onnx", "tensorflow", "absl")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            # tf2onnx 1.17 uses names that NumPy and protobuf have deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
