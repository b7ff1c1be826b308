"""A model file's graph as operations of Keras, so that a teacher can answer inside the training step."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from ferkit.core.errors import TrainingError
from ferkit.core.extras import require
from ferkit.core.modelfile import INPUT

Attributes = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Map:
    """A feature map that ONNX calls ``[N, C, H, W]``, held as ``[N, H, W, C]``, which CPUs convolve."""

    held: Any

    @property
    def shape(self) -> tuple[int | None, ...]:
        n, h, w, c = self.held.shape
        return n, c, h, w


class GraphFunction:
    """A model file, to be called on tensors.

    ONNX Runtime answers faster, but not inside a compiled step and not in bfloat16. What is known are the
    operations that ``ferkit export`` and ``ferkit ensemble`` write.

    Args:
        content: The bytes of a model file.
        outputs: The taxonomies that are wanted.
        name: For errors.
        dtype: Of feature maps and what they are convolved with; everything else is float32.

    Raises:
        TrainingError: If the graph has an operation, or an option of one, that is not known here.
    """

    def __init__(self, content: bytes, outputs: Sequence[str], *, name: str, dtype: str = "float32") -> None:
        onnx = require("onnx", "train")
        require("onnx.utils", "train")
        whole = onnx.utils.Extractor(onnx.load_from_string(content))
        model = whole.extract_model([INPUT], list(outputs))
        self.name, self.dtype, self.outputs = name, dtype, tuple(outputs)
        self.constants: dict[str, NDArray[Any]] = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        self.steps: list[tuple[Callable[..., Any], Any, Attributes]] = []
        for node in model.graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type not in _OPERATIONS or len(node.output) != 1:
                raise self._unknown(node.op_type)
            self.steps.append((_OPERATIONS[node.op_type], node, attributes))

    def __call__(self, faces: Any) -> dict[str, Any]:
        """Return probabilities float32 ``[N, K]`` by taxonomy, for faces float32 ``[N, S, S]`` in 0..255."""
        values: dict[str, Any] = {**self.constants, INPUT: faces}
        for operation, node, attributes in self.steps:
            given = [values[key] if key else None for key in node.input]
            values[node.output[0]] = operation(self, attributes, *given)
        return {output: ops.cast(values[output], "float32") for output in self.outputs}

    def _unknown(self, what: str) -> TrainingError:
        return TrainingError(
            f"{self.name} has the operation {what}, which cannot be computed inside the training step; "
            "set distil.every_step=false, and it is asked once about every face"
        )

    def _map(self, x: Any) -> _Map:
        """Return a value of four dimensions as a map."""
        if isinstance(x, _Map):
            return x
        if isinstance(x, np.ndarray):
            return _Map(ops.convert_to_tensor(np.moveaxis(x, 1, -1).astype(np.float32)))
        return _Map(ops.transpose(x, (0, 2, 3, 1)))

    def _cast(self, x: Any) -> Any:
        return ops.cast(x, self.dtype)


def _plain(x: Any) -> Any:
    """Return a value as ONNX shapes it, in float32 where it is a tensor."""
    if isinstance(x, _Map):
        return ops.cast(ops.transpose(x.held, (0, 3, 1, 2)), "float32")
    return x


def _is_static(*values: Any) -> bool:
    return all(isinstance(value, np.ndarray) for value in values)


def _each(function: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return an operation that goes place by place."""

    def operation(_: GraphFunction, __: Attributes, x: Any) -> Any:
        return _Map(function(x.held)) if isinstance(x, _Map) else function(x)

    return operation


def _both(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Return an operation on two values, one of which may be stretched to the other's shape."""

    def operation(graph: GraphFunction, _: Attributes, a: Any, b: Any) -> Any:
        if _is_static(a, b):
            return np.asarray(function(a, b))
        if isinstance(a, _Map) or isinstance(b, _Map):
            return _Map(function(*(graph._cast(_beside_a_map(graph, x)) for x in (a, b))))
        return function(*(ops.cast(x, "float32") for x in (a, b)))

    return operation


def _beside_a_map(graph: GraphFunction, x: Any) -> Any:
    if isinstance(x, _Map) or len(x.shape) == 4:
        return graph._map(x).held
    if len(x.shape) == 3:  # [C, H, W]
        return ops.transpose(ops.convert_to_tensor(x), (1, 2, 0))
    if len(x.shape) == 0 or math.prod(x.shape) == 1:
        return ops.reshape(ops.convert_to_tensor(x), ())
    raise graph._unknown(f"on a map and {len(x.shape)} dimensions")


def _cast(_: GraphFunction, attributes: Attributes, x: Any) -> Any:
    # Of use is float32 (1) alone: from what weights are stored as, and from the faces' uint8.
    if isinstance(x, np.ndarray):
        return x.astype(np.float32) if attributes["to"] == 1 else x
    return x


def _conv(
    graph: GraphFunction, attributes: Attributes, x: Any, kernel: NDArray[Any], bias: Any = None
) -> _Map:
    groups = int(attributes.get("group", 1))
    held = graph._cast(graph._map(x).held)
    weights = graph._cast(ops.convert_to_tensor(np.transpose(kernel, (2, 3, 1, 0)).astype(np.float32)))
    strides = tuple(attributes.get("strides", (1, 1)))
    dilations = tuple(attributes.get("dilations", (1, 1)))
    held, padding = _padded(graph, attributes, held, kernel.shape[2:], strides, dilations)
    common = {"strides": strides, "padding": padding, "data_format": "channels_last"}
    if groups == 1:
        y = ops.conv(held, weights, dilation_rate=dilations, **common)
    elif groups == held.shape[-1] and kernel.shape[1] == 1:
        depth = kernel.shape[0] // groups
        weights = ops.reshape(weights, (*kernel.shape[2:], groups, depth))
        y = ops.depthwise_conv(held, weights, dilation_rate=dilations, **common)
    else:
        raise graph._unknown(f"Conv with {groups} groups")
    return _Map(y if bias is None else y + graph._cast(ops.convert_to_tensor(bias.astype(np.float32))))


def _padded(
    graph: GraphFunction,
    attributes: Attributes,
    held: Any,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int] = (1, 1),
    value: float = 0.0,
) -> tuple[Any, str]:
    """Return the map, padded if need be, and how Keras calls the rest."""
    pads = [int(p) for p in attributes.get("pads", (0, 0, 0, 0))]
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise graph._unknown(f"padded by {attributes['auto_pad']!r}")
    same = []
    for side, k, step, dilation in zip(held.shape[1:3], kernel, strides, dilations, strict=True):
        needed = max((math.ceil(side / step) - 1) * step + (k - 1) * dilation + 1 - side, 0)
        same.append((needed // 2, needed - needed // 2))
    if pads == [same[0][0], same[1][0], same[0][1], same[1][1]]:
        return held, "same"
    if any(pads):
        held = ops.pad(held, ((0, 0), (pads[0], pads[2]), (pads[1], pads[3]), (0, 0)), constant_values=value)
    return held, "valid"


def _pool(function: Callable[..., Any], value: float) -> Callable[..., Any]:
    """Return a pooling; ``value`` is what its edges are filled with, not a number where nothing will do."""

    def operation(graph: GraphFunction, attributes: Attributes, x: Any) -> _Map:
        kernel = tuple(attributes["kernel_shape"])
        strides = tuple(attributes.get("strides", (1, 1)))
        held = graph._map(x).held
        if attributes.get("ceil_mode") or (any(attributes.get("pads", ())) and math.isnan(value)):
            raise graph._unknown("a pooling beyond the edge")
        held, padding = _padded(graph, attributes, held, kernel, strides, value=value)
        return _Map(function(held, kernel, strides, padding, data_format="channels_last"))

    return operation


def _reduced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a reduction; its axes are an input or, before opset 18, an attribute."""

    def operation(graph: GraphFunction, attributes: Attributes, x: Any, axes: Any = None) -> Any:
        chosen = attributes.get("axes") if axes is None else axes
        if chosen is None or not len(chosen):
            raise graph._unknown("a reduction over everything")
        rank = len(x.shape)
        where = tuple(int(axis) % rank for axis in chosen)
        keep = bool(attributes.get("keepdims", 1))
        if not isinstance(x, _Map):
            return function(ops.cast(x, "float32"), axis=where, keepdims=keep)
        if where != (2, 3):
            return function(_plain(x), axis=where, keepdims=keep)
        y = function(ops.cast(x.held, "float32"), axis=(1, 2), keepdims=keep)
        return _Map(graph._cast(y)) if keep else y

    return operation


def _mean_of_map(graph: GraphFunction, _: Attributes, x: Any) -> _Map:
    y = ops.mean(ops.cast(graph._map(x).held, "float32"), axis=(1, 2), keepdims=True)
    return _Map(graph._cast(y))


def _reshape(_: GraphFunction, __: Attributes, x: Any, shape: NDArray[np.int64]) -> Any:
    wanted = [int(length) for length in shape]
    own = list(x.shape)
    if len(wanted) == len(own) and wanted[1:] == own[1:]:
        return x
    if _is_static(x):
        return x.reshape(wanted)
    wanted = [own[k] if length == 0 else length for k, length in enumerate(wanted)]
    return ops.reshape(_plain(x), [-1 if length is None else length for length in wanted])


def _shape(_: GraphFunction, __: Attributes, x: Any) -> NDArray[np.int64]:
    """Return a value's shape; -1 is the number of faces, where that is free."""
    return np.array([-1 if length is None else length for length in x.shape], np.int64)


def _of_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operation on shapes and what else is known before any face."""

    def operation(graph: GraphFunction, attributes: Attributes, *given: Any) -> Any:
        if not _is_static(*given) or attributes.get("axis", 0) != 0:
            raise graph._unknown("Gather or Concat of faces")
        return function(*given)

    return operation


def _resize(
    graph: GraphFunction, attributes: Attributes, x: Any, _: Any, scales: Any = None, sizes: Any = None
) -> _Map:
    known = {"mode": b"linear", "coordinate_transformation_mode": b"half_pixel", "antialias": 0}
    if any(attributes.get(key, value) != value for key, value in known.items()):
        raise graph._unknown("Resize that is not linear between the middles of pixels")
    held = graph._map(x).held
    if sizes is not None and len(sizes):
        side = [int(length) for length in sizes[2:]]
    else:
        side = [int(length * scale) for length, scale in zip(held.shape[1:3], scales[2:], strict=True)]
    if side[0] < held.shape[1] or side[1] < held.shape[2]:
        raise graph._unknown("Resize to fewer pixels")
    resized = ops.image.resize(held, side, interpolation="bilinear", data_format="channels_last")
    return _Map(resized)


def _flatten(graph: GraphFunction, attributes: Attributes, x: Any) -> Any:
    if attributes.get("axis", 1) != 1:
        raise graph._unknown("Flatten about another axis")
    plain = _plain(x)
    return ops.reshape(plain, (-1, math.prod(plain.shape[1:])))


def _unsqueeze(_: GraphFunction, __: Attributes, x: Any, axes: NDArray[np.int64]) -> Any:
    places = tuple(int(axis) for axis in axes)
    return np.expand_dims(x, places) if _is_static(x) else ops.expand_dims(_plain(x), places)


def _squeeze(_: GraphFunction, __: Attributes, x: Any, axes: NDArray[np.int64]) -> Any:
    places = tuple(int(axis) for axis in axes)
    return np.squeeze(x, places) if _is_static(x) else ops.squeeze(_plain(x), places)


def _transpose(_: GraphFunction, attributes: Attributes, x: Any) -> Any:
    order = tuple(attributes["perm"])
    if isinstance(x, _Map) and order == (0, 2, 3, 1):
        return ops.cast(x.held, "float32")
    if order == (0, 3, 1, 2) and not isinstance(x, _Map):
        return _Map(x)
    return ops.transpose(_plain(x), order)


def _slice(
    graph: GraphFunction,
    _: Attributes,
    x: Any,
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    axes: NDArray[np.int64] | None = None,
    steps: NDArray[np.int64] | None = None,
) -> Any:
    if _is_static(x, begin, end) and x.ndim == 1 and steps is None:
        return x[int(begin[0]) : int(end[0])]
    if not _is_static(begin, end) or (steps is not None and (steps != 1).any()):
        raise graph._unknown("Slice with steps")
    plain = _plain(x)
    places = [slice(None)] * len(plain.shape)
    for k, axis in enumerate(range(len(begin)) if axes is None else axes):
        places[int(axis)] = slice(int(begin[k]), min(int(end[k]), np.iinfo(np.int32).max))
    return plain[tuple(places)]


def _matmul(_: GraphFunction, __: Attributes, a: Any, b: Any) -> Any:
    return ops.matmul(*(ops.cast(_plain(x), "float32") for x in (a, b)))


def _gemm(graph: GraphFunction, attributes: Attributes, a: Any, b: Any, c: Any = None) -> Any:
    if attributes.get("transA") or any(attributes.get(key, 1.0) != 1.0 for key in ("alpha", "beta")):
        raise graph._unknown("Gemm with factors")
    y = _matmul(graph, attributes, a, b.T if attributes.get("transB") else b)
    return y if c is None else y + ops.cast(c, "float32")


def _softmax(_: GraphFunction, attributes: Attributes, x: Any) -> Any:
    return ops.softmax(_plain(x), axis=int(attributes.get("axis", -1)))


_add = _both(operator.add)


def _sum(graph: GraphFunction, attributes: Attributes, *terms: Any) -> Any:
    return functools.reduce(lambda total, term: _add(graph, attributes, total, term), terms)


_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "Add": _add,
    "AveragePool": _pool(ops.average_pool, math.nan),
    "Cast": _cast,
    "Concat": _of_shapes(lambda *parts: np.concatenate(parts)),
    "Conv": _conv,
    "Div": _both(operator.truediv),
    "Flatten": _flatten,
    "Gather": _of_shapes(lambda values, places: np.asarray(values[places])),
    "Gemm": _gemm,
    "GlobalAveragePool": _mean_of_map,
    "Identity": _each(lambda x: x),
    "Log": _each(ops.log),
    "MatMul": _matmul,
    "Max": _both(ops.maximum),
    "MaxPool": _pool(ops.max_pool, -math.inf),
    "Mul": _both(operator.mul),
    "ReduceMean": _reduced(ops.mean),
    "Relu": _each(ops.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": _each(ops.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": _both(operator.sub),
    "Sum": _sum,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""What is known of ONNX: each takes the graph, the node's attributes and its inputs."""
