"""Fields of an ONNX file, read and replaced in its bytes, so that the base install needs no ``onnx``.

An ONNX file is one protobuf message; the format is at https://protobuf.dev/programming-guides/encoding.
Field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ferkit.core.errors import ModelFileError

MODEL_IR_VERSION = 1
MODEL_GRAPH = 7
MODEL_METADATA = 14
GRAPH_INITIALIZER = 5
GRAPH_INPUT = 11
GRAPH_OUTPUT = 12
GRAPH_VALUE_INFO = 13

_TENSOR_NAME = 8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message: its number, wire type, and where field and payload lie in the bytes."""

    number: int
    wire: int
    begin: int
    value: int
    end: int


class MalformedError(ModelFileError):
    """The bytes are no protobuf message."""


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= end or shift > 63:
            raise MalformedError(f"a number is cut off at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def fields(data: bytes, begin: int = 0, end: int | None = None) -> Iterator[Field]:
    """Yield the fields of the message in ``data[begin:end]``, in the order of the file.

    Raises:
        MalformedError: If the bytes are no message.
    """
    at, end = begin, len(data) if end is None else end
    while at < end:
        start = at
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value = at
            _, at = _varint(data, at, end)
        elif wire in (_FIXED32, _FIXED64):
            value = at
            at += 4 if wire == _FIXED32 else 8
        elif wire == _BYTES:
            length, value = _varint(data, at, end)
            at = value + length
        else:
            raise MalformedError(f"unknown wire type {wire} at byte {start}")
        if number == 0 or at > end:
            raise MalformedError(f"a field at byte {start} reaches beyond the end")
        yield Field(number, wire, start, value, at)


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(number: int, payload: bytes) -> bytes:
    """Return a length-delimited field, to be appended to a message."""
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(payload)) + payload


def metadata(data: bytes) -> list[tuple[str, Field, Field]]:
    """Return key, value and whole field of each metadata entry of a model.

    Raises:
        MalformedError: If the bytes are no ONNX model.
    """
    top = list(fields(data))
    numbers = {f.number for f in top if f.number != MODEL_GRAPH or f.wire == _BYTES}
    if not {MODEL_IR_VERSION, MODEL_GRAPH} <= numbers:
        raise MalformedError("it has no graph")
    entries = []
    for entry in top:
        if entry.number == MODEL_METADATA and entry.wire == _BYTES:
            parts = {f.number: f for f in fields(data, entry.value, entry.end) if f.wire == _BYTES}
            if 1 in parts and 2 in parts:
                key = data[parts[1].value : parts[1].end].decode("utf-8", errors="replace")
                entries.append((key, parts[2], entry))
    return entries


def with_metadata(data: bytes, entries: dict[str, str]) -> bytes:
    """Return the model with ``entries`` appended in order; entries of the same keys are removed first.

    Raises:
        MalformedError: If the bytes are no ONNX model.
    """
    kept = bytearray()
    at = 0
    for key, _, entry in metadata(data):
        if key in entries:
            kept += data[at : entry.begin]
            at = entry.end
    kept += data[at:]
    for key, value in entries.items():
        kept += encode(MODEL_METADATA, encode(1, key.encode()) + encode(2, value.encode()))
    return bytes(kept)


def free_sizes(model: bytes) -> bytes:
    """Return a model whose inputs and outputs may have any size along each of their axes.

    The sizes that the graph declares between them are removed too. Older files also list their weights as
    inputs, which keeps ONNX Runtime from folding constants; these inputs are removed.

    Args:
        model: The ONNX model, with float tensors as inputs and outputs.

    Raises:
        MalformedError: If the bytes are no ONNX model.
    """
    content = bytearray()
    for field in fields(model):
        if field.number != MODEL_GRAPH:
            content += model[field.begin : field.end]
            continue
        parts = list(fields(model, field.value, field.end))
        weights = {_text(model, part, _TENSOR_NAME) for part in parts if part.number == GRAPH_INITIALIZER}
        graph = bytearray()
        for part in parts:
            if part.number == GRAPH_VALUE_INFO:
                continue
            if part.number not in (GRAPH_INPUT, GRAPH_OUTPUT):
                graph += model[part.begin : part.end]
                continue
            name = _text(model, part, 1)
            if name not in weights:
                shape = _child(model, _child(model, _child(model, part, 2), 1), 2)
                axes = sum(1 for _ in fields(model, shape.value, shape.end))
                graph += encode(part.number, _value_info(name, axes))
        content += encode(MODEL_GRAPH, bytes(graph))
    return bytes(content)


def _child(model: bytes, parent: Field, number: int) -> Field:
    for field in fields(model, parent.value, parent.end):
        if field.number == number and field.wire == _BYTES:
            return field
    raise MalformedError(f"the description of a tensor at byte {parent.begin} is incomplete")


def _text(model: bytes, parent: Field, number: int) -> bytes:
    field = _child(model, parent, number)
    return model[field.value : field.end]


def _value_info(name: bytes, axes: int) -> bytes:
    """Return a ``ValueInfoProto`` of a float tensor with free axes."""
    sizes = b"".join(encode(1, encode(2, name + b"_%d" % axis)) for axis in range(axes))
    tensor = b"\x08\x01" + encode(2, sizes)
    return encode(1, name) + encode(2, encode(1, tensor))
