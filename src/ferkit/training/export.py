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

from ferkit.errors import ModelFileError
from ferkit.modelfile import CAM_PREFIX, INPUT

PRECISIONS = ("float32", "float16")
"""How weights are stored; the arithmetic is float32 either way."""

_OPSET = 18


def has_cam(network: Any, taxonomy_id: str) -> bool:
    """Return whether a head is a dense layer on a globally pooled map, which class activation maps need."""
    return f"pool_{taxonomy_id}" in {layer.name for layer in network.layers}


def to_onnx(
    network: Any, temperatures: Mapping[str, float], *, cams: bool = True, precision: str = "float32"
) -> bytes:
    """Return the network as a serialised ONNX model that follows the contract of ``ferkit.modelfile``.

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
    answers = body(ops.expand_dims(ops.cast(face, "float32"), -1), training=False)
    outputs, names = [], []
    for head, logits in zip(heads, answers, strict=False):
        outputs.append(ops.softmax(logits / float(temperatures.get(head, 1.0)), axis=-1))
        names.append(head)
    for head in mapped:
        kernel = network.get_layer(f"logits_{head}").kernel
        places = ops.matmul(answers[-1], ops.convert_to_tensor(kernel))
        outputs.append(ops.transpose(places, (0, 3, 1, 2)))
        names.append(CAM_PREFIX + head)
    model = keras.Model(face, outputs)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "model.onnx"
        signature = [keras.InputSpec(dtype="uint8", shape=(None, size, size), name=INPUT)]
        model.export(str(path), format="onnx", verbose=False, input_signature=signature, opset_version=_OPSET)
        proto = onnx.load(str(path))
    _name_outputs(proto, names, [tuple(o.shape[1:]) for o in outputs])
    proto.producer_name, proto.producer_version, proto.doc_string = "ferkit", "", ""
    if precision == "float16":
        _store_float16(proto)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def _name_outputs(proto: Any, names: list[str], shapes: list[tuple[int, ...]]) -> None:
    """Give outputs their names of the contract, and the batch its own dimension."""
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
    for node in graph.node:
        for k, value in enumerate(node.input):
            if value == taken:
                node.input[k] = INPUT
    graph.input[0].name = INPUT
    graph.name = "ferkit"
    for value in (graph.input[0], *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"


def _store_float16(proto: Any) -> None:
    """Store large weights as float16 and cast them back where they are used; sessions fold the cast away."""
    import onnx
    from onnx import numpy_helper

    graph = proto.graph
    kept, nodes = [], []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < 64:
            kept.append(tensor)
            continue
        small = values.astype(np.float16)
        if not np.isfinite(small).all():
            raise ModelFileError(f"weights of {tensor.name} exceed float16; export with --precision float32")
        stored = f"{tensor.name}/float16"
        kept.append(numpy_helper.from_array(small, stored))
        nodes.append(onnx.helper.make_node("Cast", [stored], [tensor.name], to=onnx.TensorProto.FLOAT))
    nodes += list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


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
